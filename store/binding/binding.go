// Package binding turns EventStore resources into drivers' options: the one
// place that knows both. Both planes are composed with it.
package binding

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/tlsconf"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/delay"
	"github.com/weft-mesh/weft/store/embedded"
	"github.com/weft-mesh/weft/store/kafka"
	"github.com/weft-mesh/weft/store/rocketmq"
)

// Drivers are all drivers, by kind.
func Drivers() map[string]store.Driver {
	out := map[string]store.Driver{}
	for _, d := range []store.Driver{embedded.Driver{}, rocketmq.Driver{}, delay.Driver{Driver: kafka.Driver{}}} {
		out[d.Kind()] = d
	}
	return out
}

// Options is the kind and the driver's options of an EventStore, with the
// credentials of proxies. A secret is read when the driver asks for it.
func Options(es *configv1.EventStore) (kind string, options any, err error) {
	return of(es, cmp.Or(es.GetRocketmq().GetCredentials(), es.GetKafka().GetCredentials()))
}

// AdminOptions is Options with the credentials for administration.
func AdminOptions(es *configv1.EventStore) (kind string, options any, err error) {
	return of(es, cmp.Or(es.GetRocketmq().GetAdminCredentials(), es.GetRocketmq().GetCredentials(),
		es.GetKafka().GetAdminCredentials(), es.GetKafka().GetCredentials()))
}

func of(es *configv1.EventStore, pair *configv1.KeyPair) (kind string, options any, err error) {
	switch d := es.GetDriver().(type) {
	case *configv1.EventStore_Embedded:
		return embedded.Kind, embedded.Options{}, nil
	case *configv1.EventStore_Rocketmq:
		o := rocketmq.Options{NameServers: d.Rocketmq.NameServers, Cluster: d.Rocketmq.Cluster, Brokers: d.Rocketmq.Brokers}
		if pair != nil {
			o.Keys = func() (rocketmq.Keys, error) { return keys(pair) }
		}
		if d.Rocketmq.Tls != nil {
			o.TLS = files(d.Rocketmq.Tls)
		}
		return rocketmq.Kind, o, nil
	case *configv1.EventStore_Kafka:
		o := kafka.Options{Brokers: d.Kafka.Brokers, Replicas: int(d.Kafka.ReplicationFactor)}
		if o.Mechanism, err = mechanism(d.Kafka.SaslMechanism); err != nil {
			return "", nil, err
		}
		if pair != nil {
			o.Credentials = func() (kafka.Credentials, error) {
				k, err := keys(pair)
				return kafka.Credentials{User: k.Access, Password: k.Secret}, err
			}
		}
		if d.Kafka.Tls != nil {
			o.TLS = files(d.Kafka.Tls)
		}
		return kafka.Kind, o, nil
	}
	return "", nil, errors.New("this version has no driver for the event store's kind")
}

func mechanism(m configv1.SaslMechanism) (kafka.Mechanism, error) {
	switch m {
	case configv1.SaslMechanism_SASL_MECHANISM_UNSPECIFIED:
		return "", nil
	case configv1.SaslMechanism_SASL_MECHANISM_PLAIN:
		return kafka.Plain, nil
	case configv1.SaslMechanism_SASL_MECHANISM_SCRAM_SHA_256:
		return kafka.ScramSHA256, nil
	case configv1.SaslMechanism_SASL_MECHANISM_SCRAM_SHA_512:
		return kafka.ScramSHA512, nil
	}
	return "", fmt.Errorf("this version does not know the mechanism %s", m)
}

// files is what TLS files say when a connection is made. While they cannot be read
// at first they are tried again each time.
func files(t *configv1.KafkaTls) func() (*tls.Config, error) {
	var mu sync.Mutex
	var source *tlsconf.Source
	return func() (*tls.Config, error) {
		mu.Lock()
		defer mu.Unlock()
		if source == nil {
			s, err := tlsconf.Open("event store", tlsconf.Files{CA: t.CaFile, Cert: t.CertificateFile, Key: t.KeyFile}, nil)
			if err != nil {
				return nil, missing(err)
			}
			source = s
		}
		c := source.Client()
		c.ServerName = t.ServerName
		return c, nil
	}
}
