package binding

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/kafka"
	"github.com/weft-mesh/weft/store/rocketmq"
)

func file(path string) *configv1.SecretRef {
	return &configv1.SecretRef{Source: &configv1.SecretRef_File{File: path}}
}

func env(name string) *configv1.SecretRef {
	return &configv1.SecretRef{Source: &configv1.SecretRef_Env{Env: name}}
}

func TestSecret(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := write("good", "  k3y+/=\r\n")
	link := filepath.Join(dir, "link") // as Kubernetes mounts them
	if err := os.Symlink(good, link); err != nil {
		t.Fatal(err)
	}
	t.Setenv("WEFT_TEST_KEY", "fr0m-env ")
	t.Setenv("WEFT_TEST_EMPTY", " ")
	for _, tc := range []struct {
		name  string
		ref   *configv1.SecretRef
		want  string
		wrong []string // what the error says
	}{
		{"file", file(good), "k3y+/=", nil},
		{"link", file(link), "k3y+/=", nil},
		{"variable", env("WEFT_TEST_KEY"), "fr0m-env", nil},
		{"no file", file(filepath.Join(dir, "none")), "", []string{"file " + dir + "/none", "no such file"}},
		{"folder", file(dir), "", []string{"file " + dir, "not a regular file"}},
		{"device", file("/dev/zero"), "", []string{"/dev/zero", "not a regular file"}},
		{"empty", file(write("empty", "\n \n")), "", []string{"/empty", "is empty"}},
		{"large", file(write("large", strings.Repeat("canary", 20000))), "", []string{"/large", "larger than 65536"}},
		{"long", file(write("long", strings.Repeat("canary", 200))), "", []string{"/long", "at most 1024"}},
		{"lines", file(write("lines", "canary\ncanary")), "", []string{"/lines", "on one line"}},
		{"binary", file(write("binary", "canary\x00x")), "", []string{"/binary", "printable"}},
		{"not UTF-8", file(write("latin", "canary\xe9")), "", []string{"/latin", "printable"}},
		{"no variable", env("WEFT_TEST_NONE"), "", []string{"environment variable WEFT_TEST_NONE", "not set"}},
		{"empty variable", env("WEFT_TEST_EMPTY"), "", []string{"WEFT_TEST_EMPTY", "empty"}},
		{"nothing", &configv1.SecretRef{}, "", []string{"does not know where"}},
		{"no reference", nil, "", []string{"does not know where"}},
	} {
		// Both halves of a pair are read by one rule.
		for _, pair := range []*configv1.KeyPair{{AccessKey: tc.ref, SecretKey: file(good)}, {AccessKey: file(good), SecretKey: tc.ref}} {
			got, err := keys(pair)
			if tc.wrong == nil {
				if err != nil || got != (rocketmq.Keys{Access: got.Access, Secret: got.Secret}) || got.Access != tc.want && got.Secret != tc.want {
					t.Errorf("%s: %#v %v", tc.name, got, err)
				}
				continue
			}
			if fault.ClassOf(err) != fault.Unavailable || store.Why(err) != "SecretMissing" || got != (rocketmq.Keys{}) {
				t.Fatalf("%s: %v", tc.name, err)
			}
			for _, w := range tc.wrong {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%s: %v does not say %q", tc.name, err, w)
				}
			}
			if strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), "k3y") {
				t.Errorf("%s: the error has what is there: %v", tc.name, err)
			}
			if strings.Contains(fault.From(err).Msg, dir) {
				t.Errorf("%s: a client is told the path: %v", tc.name, fault.From(err).Msg)
			}
		}
	}
}

// TestKafka: what an EventStore says of Kafka is what its driver is told, with the
// credentials of who opens it.
func TestKafka(t *testing.T) {
	t.Setenv("WEFT_TEST_PROXY", "proxy")
	t.Setenv("WEFT_TEST_ADMIN", "admin")
	pair := func(name string) *configv1.KeyPair {
		return &configv1.KeyPair{AccessKey: env(name), SecretKey: env(name)}
	}
	of := func(spec *configv1.Kafka, options func(*configv1.EventStore) (string, any, error)) kafka.Options {
		t.Helper()
		kind, o, err := options(&configv1.EventStore{Driver: &configv1.EventStore_Kafka{Kafka: spec}})
		if err != nil || kind != "kafka" {
			t.Fatal(kind, err)
		}
		return o.(kafka.Options)
	}
	plain := of(&configv1.Kafka{Brokers: []string{"a:1", "b:2"}, ReplicationFactor: 3}, AdminOptions)
	if len(plain.Brokers) != 2 || plain.Replicas != 3 || plain.Mechanism != "" || plain.Credentials != nil || plain.TLS != nil {
		t.Errorf("%+v", plain)
	}
	for m, want := range map[configv1.SaslMechanism]kafka.Mechanism{configv1.SaslMechanism_SASL_MECHANISM_PLAIN: kafka.Plain,
		configv1.SaslMechanism_SASL_MECHANISM_SCRAM_SHA_256: kafka.ScramSHA256, configv1.SaslMechanism_SASL_MECHANISM_SCRAM_SHA_512: kafka.ScramSHA512} {
		spec := &configv1.Kafka{Brokers: []string{"a:1"}, SaslMechanism: m, Credentials: pair("WEFT_TEST_PROXY")}
		for _, c := range []struct {
			options func(*configv1.EventStore) (string, any, error)
			admin   *configv1.KeyPair
			user    string
		}{{Options, nil, "proxy"}, {AdminOptions, nil, "proxy"}, {Options, pair("WEFT_TEST_ADMIN"), "proxy"}, {AdminOptions, pair("WEFT_TEST_ADMIN"), "admin"}} {
			spec.AdminCredentials = c.admin
			o := of(spec, c.options)
			if got, err := o.Credentials(); err != nil || o.Mechanism != want || got.User != c.user || got.Password != c.user {
				t.Errorf("%s with %v: %s as %q, %v", m, c.admin, o.Mechanism, got.User, err)
			}
		}
	}
	if _, _, err := Options(&configv1.EventStore{Driver: &configv1.EventStore_Kafka{Kafka: &configv1.Kafka{SaslMechanism: 77}}}); err == nil {
		t.Error("a mechanism that nobody knows")
	}
}

// TestTLS: files that are not there say so, and are taken once they are; of what they have
// no error tells anything. Without tls connections are in the clear.
func TestTLS(t *testing.T) {
	for name, tc := range map[string]struct {
		spec func(*configv1.KafkaTls) *configv1.EventStore
		conf func(any) func() (*tls.Config, error)
	}{
		"Kafka": {func(c *configv1.KafkaTls) *configv1.EventStore {
			return &configv1.EventStore{Driver: &configv1.EventStore_Kafka{Kafka: &configv1.Kafka{Tls: c}}}
		}, func(o any) func() (*tls.Config, error) { return o.(kafka.Options).TLS }},
		"RocketMQ": {func(c *configv1.KafkaTls) *configv1.EventStore {
			return &configv1.EventStore{Driver: &configv1.EventStore_Rocketmq{Rocketmq: &configv1.RocketMQ{Tls: c}}}
		}, func(o any) func() (*tls.Config, error) { return o.(rocketmq.Options).TLS }},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			ca, cert := filepath.Join(dir, "ca"), filepath.Join(dir, "cert")
			of := func(c *configv1.KafkaTls) func() (*tls.Config, error) {
				t.Helper()
				_, o, err := Options(tc.spec(c))
				if err != nil {
					t.Fatal(err)
				}
				return tc.conf(o)
			}
			if of(nil) != nil {
				t.Error("TLS that nobody asked for")
			}
			conf := of(&configv1.KafkaTls{CaFile: ca, ServerName: "kafka"})
			if _, err := conf(); store.Why(err) != "SecretMissing" || !strings.Contains(err.Error(), ca) {
				t.Fatalf("without the file: %v", err)
			}
			if err := os.WriteFile(ca, authority(t), 0o600); err != nil {
				t.Fatal(err)
			}
			c, err := conf()
			if err != nil || c.ServerName != "kafka" || c.RootCAs == nil || c.InsecureSkipVerify || c.GetClientCertificate != nil {
				t.Errorf("with it: %+v, %v", c, err)
			}
			if err := os.WriteFile(cert, []byte("-----BEGIN PRIVATE KEY-----\ncanary\n-----END PRIVATE KEY-----\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err = of(&configv1.KafkaTls{CaFile: ca, CertificateFile: cert, KeyFile: cert})()
			if store.Why(err) != "SecretMissing" || !strings.Contains(err.Error(), cert) || strings.Contains(err.Error(), "canary") {
				t.Errorf("with what is no certificate: %v", err)
			}
		})
	}
}

// authority is the certificate of one, in PEM.
func authority(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// TestWhoseCredentials: a proxy has credentials, a control plane
// admin_credentials or else these.
func TestWhoseCredentials(t *testing.T) {
	t.Setenv("WEFT_TEST_PROXY", "proxy")
	t.Setenv("WEFT_TEST_ADMIN", "admin")
	pair := func(name string) *configv1.KeyPair {
		return &configv1.KeyPair{AccessKey: env(name), SecretKey: env(name)}
	}
	for _, tc := range []struct {
		spec         *configv1.RocketMQ
		proxy, admin string
	}{
		{&configv1.RocketMQ{}, "", ""},
		{&configv1.RocketMQ{Credentials: pair("WEFT_TEST_PROXY")}, "proxy", "proxy"},
		{&configv1.RocketMQ{AdminCredentials: pair("WEFT_TEST_ADMIN")}, "", "admin"},
		{&configv1.RocketMQ{Credentials: pair("WEFT_TEST_PROXY"), AdminCredentials: pair("WEFT_TEST_ADMIN")}, "proxy", "admin"},
	} {
		es := &configv1.EventStore{Driver: &configv1.EventStore_Rocketmq{Rocketmq: tc.spec}}
		for want, options := range map[*string]func(*configv1.EventStore) (string, any, error){&tc.proxy: Options, &tc.admin: AdminOptions} {
			_, o, err := options(es)
			if err != nil {
				t.Fatal(err)
			}
			got := rocketmq.Keys{}
			if k := o.(rocketmq.Options).Keys; k != nil {
				if got, err = k(); err != nil {
					t.Fatal(err)
				}
			}
			if got.Access != *want || got.Secret != *want {
				t.Errorf("%v: has %q, want %q", tc.spec, got.Access, *want)
			}
		}
	}
}
