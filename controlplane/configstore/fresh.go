package configstore

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/fault"
)

// freshReads is how many resources Fresh reads in one transaction, of etcd's 128.
const freshReads = 100

// Fresh reads resources in etcd, and not in this replica's copy of it: what it returns
// was there after the call began. What is not there, or cannot be read, is left out.
// Unavailable where etcd does not answer, or is not what this replica has read before.
func (s *Store) Fresh(ctx context.Context, names []string) (map[string]*configv1.Resource, error) {
	snap, err := s.Current()
	if err != nil {
		return nil, err
	}
	if message, _ := s.Suspected(); message != "" {
		return nil, fault.New(fault.Unavailable, "configstore.fresh", "restore-suspected", "%s", message)
	}
	out := make(map[string]*configv1.Resource, len(names))
	for len(names) > 0 {
		some := names[:min(len(names), freshReads)]
		names = names[len(some):]
		var reads []clientv3.Op
		for _, name := range some {
			reads = append(reads, clientv3.OpGet(s.prefix+dirResources+name))
		}
		resp, err := s.client.Txn(ctx).If(clientv3.Compare(clientv3.Value(s.prefix+dirMeta+"lineage"), "=", snap.Lineage)).Then(reads...).Commit()
		if err != nil {
			return nil, &fault.Error{Class: fault.Unavailable, Op: "configstore.fresh", Reason: "etcd", Err: err, Msg: "etcd did not answer"}
		}
		if !resp.Succeeded {
			return nil, fault.New(fault.Unavailable, "configstore.fresh", "lineage", "etcd is of another lineage than this replica has read")
		}
		for i, r := range resp.Responses {
			for _, kv := range r.GetResponseRange().Kvs {
				res := &configv1.Resource{}
				if proto.Unmarshal(kv.Value, res) == nil {
					out[some[i]] = res
				}
			}
		}
	}
	return out, nil
}
