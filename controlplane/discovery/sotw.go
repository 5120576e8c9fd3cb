package discovery

import (
	"strconv"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/weft-mesh/weft/pkg/resource"
)

// sotw is what a State-of-the-World stream has beside what every stream has. Its
// client is sent all that it subscribes to whenever any of it changes; what is not
// in a response any more is gone.
type sotw struct {
	// names is the subscription as it was asked for last.
	names map[string]bool
}

// maxSotw bounds a response, which cannot be cut into parts, in bytes.
const maxSotw = 64 << 20

type sotwRequest struct{ *discoveryv3.DiscoveryRequest }

func (r sotwRequest) take(st *stream) error { return st.sotw.request(st, r.DiscoveryRequest) }

// StreamAggregatedResources serves one client that speaks State-of-the-World until
// its stream ends.
func (s *Server) StreamAggregatedResources(rpc discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return s.serve(rpc, &sotw{}, func() (request, error) {
		req, err := rpc.Recv()
		return sotwRequest{req}, err
	})
}

// request takes one request: the whole subscription, and the answer to a response.
func (w *sotw) request(st *stream, req *discoveryv3.DiscoveryRequest) error {
	if req.TypeUrl != resource.TypeURL {
		if req.ResponseNonce != "" {
			return nil
		}
		return st.rpc.SendMsg(&discoveryv3.DiscoveryResponse{TypeUrl: req.TypeUrl, Nonce: strconv.FormatUint(nonces.Add(1), 36), VersionInfo: "0"})
	}
	// The subscription counts whatever nonce it comes with: what it asks for is
	// what the client wants now.
	if err := w.subscribe(st, req.ResourceNames); err != nil {
		return err
	}
	return st.answer(req.ResponseNonce, req.ErrorDetail)
}

func (w *sotw) subscribe(st *stream, asked []string) error {
	names := make(map[string]bool, len(asked))
	for _, n := range asked {
		names[n] = true
	}
	if len(names) == 0 && (!st.asked || w.names["*"]) {
		names["*"] = true // the legacy wildcard: no names from the first request on
	}
	var sc scope
	for n := range names {
		if err := sc.add(n, func(bool) {
			if !w.names[n] {
				st.full = true // all of it is sent again, with what is new
			}
		}); err != nil {
			return err
		}
	}
	if !st.asked || len(names) != len(w.names) || st.full {
		sc.allowed, sc.serves = st.scope.allowed, st.scope.serves
		st.scope, w.names = sc, names
		st.server.classify(st)
	}
	st.asked = true
	return nil
}

// bundle is everything of the subscription: the class's, where it has no names of its
// own.
func (w *sotw) bundle(st *stream, v *view) (*bundle, error) {
	if len(st.scope.exact) == 0 {
		return v.shared(theWorld, func() (*bundle, error) { return v.world(v.whole(&v.scope)) })
	}
	d := v.whole(&st.scope)
	for name := range st.scope.exact {
		if kind, ns, _, err := resource.Split(name); err == nil && st.scope.has(kind, name, ns) && !st.scope.covers(kind, ns) {
			if e := v.get(name); e != nil {
				d.put = append(d.put, e)
			}
		}
	}
	return v.world(d)
}

// world is a bundle of one State-of-the-World response.
func (v *view) world(d delta) (*bundle, error) {
	b := &bundle{to: v.snap}
	resp := &discoveryv3.DiscoveryResponse{TypeUrl: resource.TypeURL, VersionInfo: versionInfo(v.snap), Nonce: strconv.FormatUint(nonces.Add(1), 36)}
	for _, e := range d.put {
		if b.bytes += len(e.Bytes) + 64; b.bytes > maxSotw {
			return nil, status.Errorf(codes.ResourceExhausted, "the subscription has more than %d bytes, which do not fit one State-of-the-World response: subscribe to less, or use DeltaAggregatedResources", maxSotw)
		}
		resp.Resources = append(resp.Resources, &anypb.Any{TypeUrl: resource.TypeURL, Value: e.Bytes})
		b.put = append(b.put, sent{name: e.Name, version: e.Version()})
	}
	sortSent(b.put)
	bytes, err := proto.Marshal(resp)
	b.parts = []part{{resp.Nonce, bytes}}
	return b, err
}
