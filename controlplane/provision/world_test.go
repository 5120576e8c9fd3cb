package provision

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/election"
	"github.com/weft-mesh/weft/controlplane/embedetcd"
	"github.com/weft-mesh/weft/pkg/resource"
	"github.com/weft-mesh/weft/store"
)

// world is a real etcd, and a Provisioner in office whose passes the test makes. Kafka is
// what the test says; provisioning of real stores is tested in integration/planes.
type world struct {
	*testing.T
	ctx   context.Context
	store *configstore.Store
	p     *Provisioner
	term  election.Term
}

func newWorld(t *testing.T, kafka store.Driver) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	e, err := embedetcd.Start(ctx, filepath.Join(t.TempDir(), "etcd"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	log := slog.New(slog.DiscardHandler)
	w := &world{T: t, ctx: ctx, store: configstore.New(configstore.Config{Client: e.Client(), Log: log})}
	w.p = New(Config{Store: w.store, Drivers: map[string]store.Driver{"kafka": kafka}, Options: func(*configv1.EventStore) (string, any, error) { return "kafka", nil, nil }, Log: log})
	sctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 2)
	terms := make(chan election.Term)
	go func() { ended <- w.store.Run(sctx) }()
	go func() {
		election.Run(sctx, election.Config{Client: e.Client(), Key: w.store.StatusKey("elect/test"), Log: log}, func(ctx context.Context, term election.Term) error {
			terms <- term
			<-ctx.Done()
			return nil
		})
		ended <- nil
	}()
	t.Cleanup(func() {
		w.p.closeAll()
		stop()
		w.must(<-ended)
		w.must(<-ended)
	})
	w.term = <-terms
	_, err = w.store.WaitFor(ctx, 0)
	w.must(err)
	return w
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// put writes and waits until it is read.
func (w *world) put(list ...*configv1.Resource) {
	w.Helper()
	snap, err := w.store.Current()
	w.must(err)
	rev, err := w.store.Commit(w.ctx, snap, configstore.Change{Put: list})
	w.must(err)
	_, err = w.store.WaitFor(w.ctx, rev)
	w.must(err)
}

// pass makes one pass and gives the configuration after it.
func (w *world) pass() *configstore.Snapshot {
	w.Helper()
	snap, err := w.store.Current()
	w.must(err)
	_, err = w.p.pass(w.ctx, w.term, snap)
	w.must(err)
	_, rev, err := w.store.Changed(w.ctx)
	w.must(err)
	snap, err = w.store.WaitFor(w.ctx, rev)
	w.must(err)
	return snap
}

// condition is the reason of a resource's condition; "" for none.
func (w *world) condition(name string) string {
	w.Helper()
	all, err := Conditions(w.store)(w.ctx)
	w.must(err)
	for _, c := range all[name] {
		if c.Type == "Provisioned" && c.State == adminv1.Condition_STATE_FALSE {
			return c.Reason
		}
	}
	return ""
}

func made(namespace, name string, r *configv1.Resource) *configv1.Resource {
	r.Metadata = &configv1.Metadata{Namespace: namespace, Name: name, Uid: uuid.NewString(), CreatedAt: timestamppb.Now()}
	r.Name = resource.NameOf(r)
	return r
}

// embedded is an EventStore that only proxies open.
func embedded(namespace string) *configv1.Resource {
	return made(namespace, "main", &configv1.Resource{Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Embedded{Embedded: &configv1.Embedded{}}}}})
}

func kafka(namespace, name string) *configv1.Resource {
	return made(namespace, name, &configv1.Resource{Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Kafka{Kafka: &configv1.Kafka{Brokers: []string{"192.0.2.1:9092"}}}}}})
}

// topic is a Topic in a store, and its binding.
func topic(name string, in *configv1.Resource) []*configv1.Resource {
	ns := in.Metadata.Namespace
	t := made(ns, name, &configv1.Resource{Spec: &configv1.Resource_Topic{Topic: &configv1.Topic{Store: in.Metadata.Name}}})
	return []*configv1.Resource{t, made(ns, name, &configv1.Resource{Spec: &configv1.Resource_TopicBinding{TopicBinding: &configv1.TopicBinding{TopicUid: t.Metadata.Uid,
		Epochs: []*configv1.Epoch{{Number: 1, Store: in.Metadata.Name, StoreUid: in.Metadata.Uid, PhysicalName: ns + "_" + name}}}}})}
}

func subscription(namespace, name string, topics ...string) *configv1.Resource {
	return made(namespace, name, &configv1.Resource{Spec: &configv1.Resource_Subscription{Subscription: &configv1.Subscription{Topics: topics}}})
}
