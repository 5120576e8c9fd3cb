package weft

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/census"
	"github.com/weft-mesh/weft/pkg/resource"
)

var update = flag.Bool("update", false, "write testdata/*.golden")

// screen compares what is on the screen with a file.
func screen(t *testing.T, name string, show func(w *strings.Builder) error) {
	t.Helper()
	var b strings.Builder
	if err := show(&b); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || b.String() != string(want) {
		t.Errorf("%s: %v\n%s", path, err, b.String())
	}
	for i, line := range strings.Split(b.String(), "\n") {
		if i >= 60 {
			t.Fatalf("%s is no longer one screen: line %d is %q", name, i, line)
		}
	}
}

// fleet is so many proxies, of which one in twelve refuses a topic, three have not
// answered, one is of an old version, and two are gone.
func fleet(n int, now time.Time) []*adminv1.ProxyStatus {
	ago := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(now.Add(-d)) }
	var out []*adminv1.ProxyStatus
	for i := range n {
		p := &adminv1.ProxyStatus{NodeId: fmt.Sprintf("node-%05d", i), Connected: true, ConnectedAt: ago(3 * time.Hour), LastSeen: ago(0), Peer: fmt.Sprintf("10.0.%d.%d:4711", i/256, i%256),
			AckedRevision: 4711, SentRevision: 4711, Replica: "a", Info: &discoveryv1.NodeInfo{Version: "v1.2.3"}}
		switch {
		case i%12 == 5:
			p.Rejections = []*discoveryv1.Rejection{{Name: "topic/shop/orders", Version: "4711", Field: "spec.partitions", Reason: "this version has at most 64"}}
		case i%(n/3) == 2:
			p.AckedRevision = 4700
		case i == 7:
			p.Withheld = []*configv1.Withheld{{Name: "quota/shop/publishers", Version: "4711", Reason: "kind quota"}}
			p.Info.Version = "v1.1.0"
		case i == 8, i == 9:
			p.Connected, p.LastSeen, p.AckedRevision = false, ago(5*time.Minute), 4600
		case i == 10:
			p.Report = &discoveryv1.ReportStatusRequest{Stores: []*discoveryv1.StoreState{{Name: "eventstore/shop/main", Reason: "NotOpen", Message: "dial tcp 10.9.9.9:9876: connection refused"}}}
		}
		out = append(out, p)
	}
	return out
}

func answer(proxies []*adminv1.ProxyStatus, most int, now time.Time) *adminv1.GetStatusResponse {
	st := &adminv1.GetStatusResponse{Lineage: "1-abc", Revision: 4711, Version: "v1.2.3", Fleet: census.Summarize(proxies, "1-abc", 4711),
		Replicas: []*adminv1.ReplicaStatus{
			{Id: "a", Address: "10.1.0.1:7420", Version: "v1.2.3", Revision: 4711, Streams: uint32(len(proxies)), Offices: []string{"fleet", "provision"}},
			{Id: "b", Address: "10.1.0.2:7420", Version: "v1.2.3", Error: "it does not answer: connection refused"}},
		Alarms:         []*adminv1.Alarm{{Reason: "RegistryUnreachable", Message: "proxies cannot be registered: connection refused", Since: timestamppb.New(now.Add(-3 * time.Minute))}},
		ResourcesTotal: 3, ResourcesNotReady: 1}
	census.Sort(proxies, st.Lineage, st.Revision)
	st.Proxies = census.Fit(proxies, most)
	ready := &adminv1.Condition{Type: "Ready", State: adminv1.Condition_STATE_TRUE, Reason: "Provisioned"}
	st.Resources = []*adminv1.ResourceStatus{
		{Name: "topic/shop/late", Conditions: []*adminv1.Condition{{Type: "Ready", State: adminv1.Condition_STATE_FALSE, Reason: "NotProvisioned", Message: "the store is not reachable"}}},
		{Name: "topic/shop/a", Conditions: []*adminv1.Condition{ready}}, {Name: "topic/shop/b", Conditions: []*adminv1.Condition{ready}}}
	return st
}

// TestStatusScreen: who lacks what, and why, is on one screen, for a dozen proxies
// and for ten thousand; nothing that is counted is left out without a word.
func TestStatusScreen(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, n := range []int{12, 100, 10000} {
		screen(t, fmt.Sprintf("status-%d", n), func(w *strings.Builder) error {
			return printStatus(w, answer(fleet(n, now), 1000, now), &adminv1.GetStatusRequest{}, false, now)
		})
	}
	screen(t, "status-none", func(w *strings.Builder) error {
		st := answer(nil, 1000, now)
		st.Replicas, st.Alarms, st.Resources, st.ResourcesTotal, st.ResourcesNotReady = st.Replicas[:1], nil, nil, 0, 0
		return printStatus(w, st, &adminv1.GetStatusRequest{Namespace: "nosuch"}, false, now)
	})
	screen(t, "status-one", func(w *strings.Builder) error {
		st := answer(fleet(12, now), 1000, now)
		p := st.Proxies[0]
		p.Report = &discoveryv1.ReportStatusRequest{
			Config: &discoveryv1.AppliedConfig{Lineage: "1-abc", Revision: 4711, Source: discoveryv1.AppliedConfig_SOURCE_LIVE, ConfirmedAt: timestamppb.New(now.Add(-9 * time.Second)),
				Digests: []*configv1.KindDigest{{Kind: "eventstore", Count: 1}, {Kind: "topic", Count: 1200}}, Withheld: []string{"topic/shop/orders"}},
			Load:    &discoveryv1.Load{Connections: 1200, Streams: 30, InFlight: 4, Published: 123456, Delivered: 654321, CpuMicros: 90e6, MemoryBytes: 64 << 20},
			Stores:  []*discoveryv1.StoreState{{Name: "eventstore/shop/main", Reason: "NotOpen", Message: "connection refused"}},
			Targets: []*discoveryv1.TargetState{{Name: "subscription/shop/invoices", Reason: "Refused", Message: "http 500"}},
			Denied:  []*discoveryv1.DeniedState{{Name: "topic/shop/payments", Reason: "AccessDenied", Message: "publish: refused"}},
			Blocked: []*discoveryv1.BlockedState{{Name: "subscription/shop/shipping", Keys: 2, Topic: "orders", Position: "1.abc.1.p0.7"}}}
		return printProxy(w, st, p, now)
	})
	screen(t, "status-dead", func(w *strings.Builder) error {
		st := answer(fleet(12, now), 1000, now)
		p := &adminv1.ProxyStatus{NodeId: "node-00008", DeadAt: timestamppb.New(now.Add(-2 * time.Hour)), DeadBy: "ops"}
		return printProxy(w, st, p, now)
	})
}

// TestWaitNames: whoever waits in vain hears who has not got it, and why.
func TestWaitNames(t *testing.T) {
	now := time.Now()
	st := answer(fleet(100, now), named, now)
	err := waiting{}.late(st, 4711, time.Minute)
	for _, want := range []string{"14 of 100 proxies have not all of revision 4711 after 1m0s", "node-00005 refuses topic/shop/orders (version 4711): spec.partitions: this version has at most 64",
		"node-00002 was sent 4711, has not answered; it has revision 4700", "node-00007 is not sent quota/shop/publishers", "node-00008 has not been connected for 5m, and had revision 4600", "replica 10.1.0.2:7420: it does not answer"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("it does not say %q:\n%v", want, err)
		}
	}
	if err := (waiting{connectedOnly: true}).late(st, 4711, time.Minute); strings.Contains(err.Error(), "node-00008") || !strings.Contains(err.Error(), "12 of 98") {
		t.Error(err)
	}
	st = answer(fleet(10000, now), named, now)
	if err := (waiting{}).late(st, 4711, time.Minute); strings.Count(err.Error(), "\n") > named+3 || !strings.Contains(err.Error(), "and 819 more: weft status says why") {
		t.Error(err)
	}
}

// restarting is a control plane whose replicas are restarted: some calls fail.
type restarting struct {
	adminv1.AdminServiceClient
	calls  int
	failed map[int]error // by the number of the call, from 1
	st     *adminv1.GetStatusResponse
}

func (r *restarting) fails() error {
	r.calls++
	return r.failed[r.calls]
}

func (r *restarting) GetStatus(context.Context, *adminv1.GetStatusRequest, ...grpc.CallOption) (*adminv1.GetStatusResponse, error) {
	return r.st, r.fails()
}

func (r *restarting) List(_ context.Context, req *adminv1.ListRequest, _ ...grpc.CallOption) (*adminv1.ListResponse, error) {
	m := &configv1.Metadata{Namespace: "shop", Name: "orders", Uid: "u", Version: "12"}
	if req.Kind == string(resource.Topic) {
		return &adminv1.ListResponse{Resources: []*configv1.Resource{{Metadata: m, Spec: &configv1.Resource_Topic{Topic: &configv1.Topic{}}}}}, r.fails()
	}
	return &adminv1.ListResponse{Resources: []*configv1.Resource{{Metadata: m, Spec: &configv1.Resource_TopicAdmission{TopicAdmission: &configv1.TopicAdmission{TopicUid: "u", Admitted: r.calls > 3}}}}}, r.fails()
}

// TestWaitOverRestarts: who waits goes on where an answer does not come, and hears of it where
// none does until the time is over; what cannot pass, and a first call that fails, end it.
func TestWaitOverRestarts(t *testing.T) {
	away, refused := status.Error(codes.Unavailable, "away"), status.Error(codes.PermissionDenied, "no")
	orders := &plan{items: []item{{name: "topic/shop/orders", after: &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "shop", Name: "orders"}, Spec: &configv1.Resource_Topic{Topic: &configv1.Topic{}}}}}}
	for name, tc := range map[string]struct {
		failed      map[int]error
		want        error
		calls, made int // of a wait for proxies, and for topics
	}{
		"a restart":             {map[int]error{2: away, 3: status.Error(codes.DeadlineExceeded, "")}, nil, 5, 5},
		"a refusal":             {map[int]error{2: refused}, refused, 2, 2},
		"away when time is out": {map[int]error{5: away, 6: away, 7: away, 8: away}, away, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &restarting{failed: tc.failed, st: &adminv1.GetStatusResponse{}}
				_, ok, err := poll(t.Context(), c, &adminv1.GetStatusRequest{}, 8*statusEvery-1, func(*adminv1.GetStatusResponse) bool { return tc.calls > 0 && c.calls == tc.calls })
				if !errors.Is(err, tc.want) || ok != (tc.want == nil) || tc.calls > 0 && c.calls != tc.calls {
					t.Errorf("%t, %v after %d calls", ok, err, c.calls)
				}
				if tc.made == 0 {
					return
				}
				c.calls = 0
				revision, err := awaitTopics(t.Context(), c, orders, 7, 8*statusEvery, &progress{})
				if !errors.Is(err, tc.want) || err == nil && revision != 12 || c.calls != tc.made {
					t.Errorf("%d, %v after %d calls", revision, err, c.calls)
				}
			})
		})
	}
	c := &restarting{failed: map[int]error{1: away}}
	if _, _, err := poll(t.Context(), c, &adminv1.GetStatusRequest{}, time.Hour, nil); !errors.Is(err, away) {
		t.Errorf("nobody is there: %v", err)
	}
}
