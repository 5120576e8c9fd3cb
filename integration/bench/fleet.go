package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
)

// The fleet: proxies that are simulated, each a connection and a stream of its
// own, and a mesh of so many resources.
const (
	nodes     = 200
	resources = 1000
	typeURL   = "type.googleapis.com/weft.config.v1alpha1.Resource"
)

// fleet measures how one change reaches many proxies.
func fleet(ctx context.Context, r *run) error {
	m, err := r.startMesh(ctx, "fleet", filepath.Join(r.dir, "fleet"))
	if err != nil {
		return err
	}
	defer m.end()
	conn, err := grpc.NewClient(m.admin, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	admin := adminv1.NewAdminServiceClient(conn)
	for from := 0; from < resources; from += 100 {
		var batch []*configv1.Resource
		for i := range 100 {
			batch = append(batch, store(r.ns, fmt.Sprintf("s%d", from+i), "0"))
		}
		if _, err := admin.Apply(ctx, &adminv1.ApplyRequest{Resources: batch}); err != nil {
			return err
		}
	}
	pid := m.control.PID()
	before, err := m.inUse(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	acked := make(chan acknowledgement, nodes)
	failed := make(chan error, nodes)
	began, cpu := time.Now(), cpuOf(pid)
	for i := range nodes {
		wg.Go(func() {
			if err := follow(ctx, m.disco, fmt.Sprintf("node-%d", i), acked); err != nil && ctx.Err() == nil {
				failed <- err
			}
		})
	}
	const changed = "s7"
	reached := func(version string, since time.Time) ([]time.Duration, error) {
		var took []time.Duration
		timeout := time.NewTimer(2 * time.Minute)
		defer timeout.Stop()
		for len(took) < nodes {
			select {
			case a := <-acked:
				if a.label == version {
					took = append(took, a.at.Sub(since))
				}
			case err := <-failed:
				return nil, err
			case <-timeout.C:
				return nil, fmt.Errorf("%d of %d proxies have acknowledged", len(took), nodes)
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		slices.Sort(took)
		return took, nil
	}
	took, err := reached("0", began)
	if err != nil {
		return err
	}
	r.printf("  %d proxies with %d resources: all synced after %s; control plane %s of CPU\n", nodes, resources, took[nodes-1].Round(time.Millisecond), cpuOf(pid)-cpu)
	after, err := m.inUse(ctx)
	if err != nil {
		return err
	}
	stream := (after - before) / nodes / 1024
	r.printf("  control plane, heap and stacks in use: %.0f MiB before, %.0f MiB after, %.0f KiB a stream with its connection; resident %d MiB\n", before/(1<<20), after/(1<<20), stream, residentOf(pid)>>20)
	var half, most, all, spent []float64
	for i := range 10 * r.rounds {
		version := fmt.Sprint(i + 1)
		cpu := cpuOf(pid)
		began := time.Now()
		if _, err := admin.Apply(ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{store(r.ns, changed, version)}}); err != nil {
			return err
		}
		took, err := reached(version, began)
		if err != nil {
			return err
		}
		ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
		half, most, all = append(half, ms(took[nodes/2-1])), append(most, ms(took[nodes*99/100-1])), append(all, ms(took[nodes-1]))
		spent = append(spent, ms(cpuOf(pid)-cpu))
	}
	r.printf("  one change, from the call to the acknowledgement: 50 %% %s ms, 99 %% %s ms, all %s ms; control plane %s ms of CPU\n",
		spread(half, "%.0f"), spread(most, "%.0f"), spread(all, "%.0f"), spread(spent, "%.0f"))
	r.note("one change to %d proxies: 50 %% %s ms, 99 %% %s ms, all %s ms; %.0f KiB of the control plane a stream", nodes, spread(half, "%.0f"), spread(most, "%.0f"), spread(all, "%.0f"), stream)
	return nil
}

func store(ns, name, label string) *configv1.Resource {
	return &configv1.Resource{Metadata: &configv1.Metadata{Namespace: ns, Name: name, Labels: map[string]string{"v": label}},
		Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Embedded{Embedded: &configv1.Embedded{}}}}}
}

// inUse is the memory that the control plane uses, in bytes, after collections.
func (m *mesh) inUse(ctx context.Context) (bytes float64, err error) {
	var heap string
	for range 3 { // pools give up their buffers at the second one
		if heap, err = get(ctx, "http://"+m.controlOps+"/debug/pprof/heap?gc=1"); err != nil {
			return 0, err
		}
	}
	if m.r.profiles != "" {
		if err := os.WriteFile(filepath.Join(m.r.profiles, "control-plane-heap.pprof"), []byte(heap), 0o600); err != nil {
			return 0, err
		}
	}
	text, err := get(ctx, "http://"+m.controlOps+"/metrics")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		for _, name := range []string{"go_memstats_heap_inuse_bytes ", "go_memstats_stack_inuse_bytes "} {
			if v, ok := strings.CutPrefix(line, name); ok {
				n, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
				if err != nil {
					return 0, err
				}
				bytes += n
			}
		}
	}
	return bytes, nil
}

func get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(b), err
}

// acknowledgement is when a proxy acknowledged a version of the resource that is
// changed.
type acknowledgement struct {
	label string
	at    time.Time
}

// follow is one simulated proxy: a plain delta client that decodes what it gets
// and acknowledges it.
func follow(ctx context.Context, addr, node string, acked chan<- acknowledgement) error {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	st, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	if err := st.Send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: node}, TypeUrl: typeURL, ResourceNamesSubscribe: []string{"*"}}); err != nil {
		return err
	}
	for {
		resp, err := st.Recv()
		if err != nil {
			return err
		}
		label := ""
		for _, res := range resp.Resources {
			var one configv1.Resource
			if err := res.Resource.UnmarshalTo(&one); err != nil {
				return err
			}
			if one.GetMetadata().GetName() == "s7" {
				label = one.Metadata.Labels["v"]
			}
		}
		if err := st.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, ResponseNonce: resp.Nonce}); err != nil {
			return err
		}
		if label != "" {
			select {
			case acked <- acknowledgement{label, time.Now()}:
			case <-ctx.Done():
				return errors.New("over")
			}
		}
	}
}
