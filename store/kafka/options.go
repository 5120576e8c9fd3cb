package kafka

import (
	"context"
	"crypto/tls"
	"net"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kversion"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// Options of the driver.
type Options struct {
	// Brokers, "host:port", are asked first; they tell of the others.
	Brokers []string
	// Mechanism is how a connection says who it is; "" is not at all.
	Mechanism Mechanism
	// Credentials gives what a connection says with Mechanism. It is called by
	// Open, which fails as it does, and for each new connection: so credentials
	// that were replaced are taken while the store is open. It is called
	// concurrently.
	Credentials func() (Credentials, error)
	// TLS gives the settings of a connection; nil: connections are in the clear.
	// It is called as Credentials is. Without a ServerName a broker's certificate
	// must be for the host of its address.
	TLS func() (*tls.Config, error)
	// Replicas is the replication factor of topics that are made; the brokers'
	// default when 0.
	Replicas int
	// Clock dates what is sent to topics where brokers do not date it themselves.
	Clock clock.Clock
}

// Mechanism is a mechanism of SASL.
type Mechanism string

// Mechanisms.
const (
	Plain       Mechanism = "PLAIN"
	ScramSHA256 Mechanism = "SCRAM-SHA-256"
	ScramSHA512 Mechanism = "SCRAM-SHA-512"
)

// Credentials are a user's name and password.
type Credentials struct{ User, Password string }

// String hides both: what is formatted ends up in logs.
func (Credentials) String() string { return "(credentials)" }

// GoString is String.
func (c Credentials) GoString() string { return c.String() }

// Times of connections.
const (
	dialTimeout = 3 * time.Second
	// callTimeout is how long a short question may take, tries included.
	callTimeout = 5 * time.Second
	minRetry    = 50 * time.Millisecond
	maxRetry    = 2 * time.Second
	// metadataAge is how soon partitions that were added are seen.
	metadataAge = 10 * time.Second
)

// check tells what is wrong with the options, and reads their secrets once.
func (o *Options) check() error {
	if len(o.Brokers) == 0 {
		return fault.New(fault.Invalid, "kafka.open", "store-options", "a Kafka store needs brokers")
	}
	switch o.Mechanism {
	case "", Plain, ScramSHA256, ScramSHA512:
	default:
		return fault.New(fault.Invalid, "kafka.open", "store-options", "this version does not know the mechanism %q", o.Mechanism)
	}
	if o.Mechanism != "" {
		if o.Credentials == nil {
			return fault.New(fault.Invalid, "kafka.open", "store-options", "%s needs credentials", o.Mechanism)
		}
		if _, err := o.Credentials(); err != nil {
			return err
		}
	}
	if o.TLS != nil {
		if _, err := o.TLS(); err != nil {
			return err
		}
	}
	return nil
}

// offsetCommit is the key of that request. Its version 4 is the last that says how
// long an offset is kept: with the later ones brokers forget the place of a group
// that had no member for a week.
const (
	offsetCommit        = 8
	offsetCommitVersion = 4
)

// maxInflated bounds a batch once it is decompressed: another producer's may be small, and
// have been of any size.
const maxInflated = 64 << 20

// client makes a client with the options.
func (o *Options) client(id string, more ...kgo.Opt) (*kgo.Client, error) {
	versions := kversion.Stable()
	versions.SetMaxKeyVersion(offsetCommit, offsetCommitVersion)
	opts := append([]kgo.Opt{
		kgo.SeedBrokers(o.Brokers...),
		kgo.ClientID(id),
		kgo.MaxVersions(versions),
		kgo.DisableClientMetrics(),
		kgo.Dialer(o.dial),
		kgo.RequestTimeoutOverhead(callTimeout),
		kgo.RetryTimeout(callTimeout),
		kgo.RetryBackoffFn(backoff),
		kgo.MetadataMinAge(250 * time.Millisecond),
		kgo.MetadataMaxAge(metadataAge),
		kgo.MaxDecompressBatchBytes(maxInflated),
	}, append(more, extra...)...)
	if m := o.mechanism(); m != nil {
		opts = append(opts, kgo.SASL(m))
	}
	c, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, "kafka.open", "store-options", err)
	}
	return c, nil
}

// extra has every client, too: tests see what it says, and change what it hears.
var extra []kgo.Opt

// backoff is how long to wait after so many failures one after the other.
func backoff(fails int) time.Duration {
	return min(minRetry<<min(max(fails-1, 0), 10), maxRetry)
}

func (o *Options) mechanism() sasl.Mechanism {
	switch o.Mechanism {
	case Plain:
		return plain.Plain(func(context.Context) (plain.Auth, error) {
			c, err := o.Credentials()
			return plain.Auth{User: c.User, Pass: c.Password}, err
		})
	case ScramSHA256, ScramSHA512:
		auth := func(context.Context) (scram.Auth, error) {
			c, err := o.Credentials()
			return scram.Auth{User: c.User, Pass: c.Password}, err
		}
		if o.Mechanism == ScramSHA256 {
			return scram.Sha256(auth)
		}
		return scram.Sha512(auth)
	}
	return nil
}

// dial connects to a broker, by TLS where the options say so.
func (o *Options) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c, err := store.Dial(ctx, &net.Dialer{}, addr, o.TLS)
	if err != nil || o.TLS == nil {
		return c, err
	}
	return &shaken{Conn: c}, nil
}

// shaken is a connection whose handshake is done on this side: with TLS 1.3 the broker
// may refuse the client's certificate still. It is read from by one goroutine at a time.
type shaken struct {
	net.Conn
	answered bool
}

func (c *shaken) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.answered = c.answered || n > 0; !c.answered && store.RefusedTLS(err) {
		err = store.Unanswered(true, err)
	}
	return n, err
}
