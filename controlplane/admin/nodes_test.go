package admin

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
)

// TestMayLive: a proxy that was connected to a replica which does not answer is not declared
// dead, nor forgotten: nobody knows that it is not connected.
func TestMayLive(t *testing.T) {
	w := newWorld(t, 1)
	put := func(key, value string) {
		t.Helper()
		_, err := w.etcd.Put(w.ctx, w.stores[0].StatusKey(key), value)
		w.must(err)
	}
	record := func(node, replica string, connected bool) {
		t.Helper()
		b, err := proto.Marshal(&adminv1.ProxyStatus{NodeId: node, Replica: replica, Connected: connected})
		w.must(err)
		put("proxy/"+node, string(b))
	}
	b, err := json.Marshal(map[string]any{"id": "r2", "address": "127.0.0.1:1", "seen": time.Now()})
	w.must(err)
	put("replica/r2", string(b))
	record("there", "r2", true)
	record("left", "r2", false)
	record("of-none", "r3", true) // its replica has ended, and said so
	for _, node := range []string{"there", "left", "of-none"} {
		put("node/"+node, `{"id":"`+node+`","all":true}`)
	}
	declare := func(node string) error {
		_, err := w.api[0].DeclareNodeDead(w.ctx, &adminv1.DeclareNodeDeadRequest{NodeId: node, Reason: "test"})
		return err
	}
	if err := declare("there"); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "the replica at 127.0.0.1:1, which does not answer") {
		t.Errorf("one that may be connected is declared dead: %v", err)
	}
	for _, node := range []string{"left", "of-none"} {
		if err := declare(node); err != nil {
			t.Errorf("%s is not declared dead: %v", node, err)
		}
	}
	put("node/there", `{"id":"there","all":true,"dead":{"at":"2026-01-02T03:04:05Z","by":"ops"}}`)
	_, err = w.api[0].ForgetNodes(w.ctx, &adminv1.ForgetNodesRequest{NodeIds: []string{"left", "there"}})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "node there was connected") {
		t.Errorf("one that may be connected is forgotten: %v", err)
	}
}

// TestStatusOfDead: the status of one proxy says that it was declared dead, also where nobody
// remembers its connection; to those who see all of the mesh.
func TestStatusOfDead(t *testing.T) {
	w := newWorld(t, 1)
	for _, node := range []string{"gone", "other"} {
		_, err := w.etcd.Put(w.ctx, w.stores[0].StatusKey("node/"+node), `{"id":"`+node+`","all":true,"dead":{"at":"2026-01-02T03:04:05Z","by":"ops"}}`)
		w.must(err)
	}
	w.connected.Store(&[]*adminv1.ProxyStatus{{NodeId: "other", LastSeen: timestamppb.New(time.Unix(1e9, 0))}, {NodeId: "lives", Connected: true}})
	ask := func(node string, local bool) string {
		st, err := w.api[0].GetStatus(w.ctx, &adminv1.GetStatusRequest{NodeId: node, WithoutResources: true, Local: local})
		w.must(err)
		var out []string
		for _, p := range st.Proxies {
			out = append(out, p.NodeId+" "+p.DeadBy)
			if by := p.DeadBy; (by != "") != (p.DeadAt != nil) {
				t.Errorf("%s was declared dead by %q at %v", p.NodeId, by, p.DeadAt)
			}
		}
		return strings.Join(out, ", ")
	}
	for ask("other", false) == "other " && w.ctx.Err() == nil {
		<-time.After(time.Millisecond) // the replica reads the roster
	}
	for node, want := range map[string]string{"gone": "gone ops", "other": "other ops", "lives": "lives ", "nobody": ""} {
		if got := ask(node, false); got != want {
			t.Errorf("%s: %q, want %q", node, got, want)
		}
	}
	if got := ask("gone", true); got != "" {
		t.Errorf("another replica is told %q, which it knows", got)
	}
}
