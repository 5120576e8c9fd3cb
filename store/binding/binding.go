// Package binding turns EventStore resources into drivers' options: the one
// place that knows both. Both planes are composed with it.
package binding

import (
	"cmp"
	"errors"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/embedded"
	"github.com/weft-mesh/weft/store/rocketmq"
)

// Drivers are all drivers, by kind.
func Drivers() map[string]store.Driver {
	out := map[string]store.Driver{}
	for _, d := range []store.Driver{embedded.Driver{}, rocketmq.Driver{}} {
		out[d.Kind()] = d
	}
	return out
}

// Options is the kind and the driver's options of an EventStore, with the
// credentials of proxies. A secret is read when the driver asks for it.
func Options(es *configv1.EventStore) (kind string, options any, err error) {
	return of(es, es.GetRocketmq().GetCredentials())
}

// AdminOptions is Options with the credentials for administration.
func AdminOptions(es *configv1.EventStore) (kind string, options any, err error) {
	return of(es, cmp.Or(es.GetRocketmq().GetAdminCredentials(), es.GetRocketmq().GetCredentials()))
}

func of(es *configv1.EventStore, pair *configv1.KeyPair) (kind string, options any, err error) {
	switch d := es.GetDriver().(type) {
	case *configv1.EventStore_Embedded:
		return embedded.Kind, embedded.Options{}, nil
	case *configv1.EventStore_Rocketmq:
		o := rocketmq.Options{NameServers: d.Rocketmq.NameServers, Cluster: d.Rocketmq.Cluster}
		if pair != nil {
			o.Keys = func() (rocketmq.Keys, error) { return keys(pair) }
		}
		return rocketmq.Kind, o, nil
	}
	return "", nil, errors.New("this version has no driver for the event store's kind")
}
