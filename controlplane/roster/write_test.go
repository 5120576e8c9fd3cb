package roster

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// wentBack is an etcd that has an older node a than the replica knows.
type wentBack struct {
	clientv3.KV
	asked int
	most  int
	over  func() // once it was asked more often
}

type wentBackTxn struct{ etcd *wentBack }

func (e *wentBack) Txn(context.Context) clientv3.Txn   { return wentBackTxn{e} }
func (x wentBackTxn) If(...clientv3.Cmp) clientv3.Txn  { return x }
func (x wentBackTxn) Then(...clientv3.Op) clientv3.Txn { return x }
func (x wentBackTxn) Else(...clientv3.Op) clientv3.Txn { return x }
func (x wentBackTxn) Commit() (*clientv3.TxnResponse, error) {
	if x.etcd.asked++; x.etcd.asked > x.etcd.most {
		x.etcd.over()
	}
	return &clientv3.TxnResponse{Header: &etcdserverpb.ResponseHeader{Revision: 7}, Responses: []*etcdserverpb.ResponseOp{{Response: &etcdserverpb.ResponseOp_ResponseRange{
		ResponseRange: &etcdserverpb.RangeResponse{Kvs: []*mvccpb.KeyValue{{Key: []byte("/p/a"), Value: []byte(`{"id":"a","all":true}`), ModRevision: 3}}}}}}}, nil
}

// TestPutWaits: a node that cannot be written down, as etcd went back and the replica has
// not noticed yet, is not tried without a pause.
func TestPutWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), joinTime)
		defer cancel()
		etcd := &wentBack{most: int(joinTime/putAgain) + 3, over: cancel} // two at once, and one as the time is up
		r := New(Config{Etcd: &clientv3.Client{KV: etcd}, Prefix: "/p/", Log: slog.New(slog.DiscardHandler)})
		r.known["a"] = entry{&Node{ID: "a", All: true, Incarnation: "1"}, 100}
		written := r.put(t.Context(), []*join{{Joining: Joining{Node: "a", Incarnation: "2"}, ctx: ctx, done: make(chan joined, 1)}})
		if len(written) > 0 || etcd.asked > etcd.most {
			t.Errorf("%d are written, and etcd was asked %d times, at most %d", len(written), etcd.asked, etcd.most)
		}
	})
}
