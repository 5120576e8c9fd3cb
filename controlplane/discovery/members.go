package discovery

import (
	"crypto/sha256"
	"fmt"
	"maps"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
)

// admit takes a stream in, if there is room and nobody with another credential is
// connected as its node. A reason to end the stream is sent to ended.
func (s *Server) admit(st *stream) (ended <-chan error, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		return nil, status.Error(codes.Unavailable, "this control plane is stopping; try another")
	}
	if len(s.streams) >= s.cfg.MaxStreams {
		return nil, status.Errorf(codes.ResourceExhausted, "this control plane has %d streams; try another", s.cfg.MaxStreams)
	}
	if other := s.nodes[st.nodeID]; other != nil && other.credential.subject != st.credential.subject {
		return nil, status.Errorf(codes.PermissionDenied, "node %s is connected with another certificate", st.nodeID)
	}
	if s.perNode[st.nodeID] >= s.cfg.NodeStreams {
		return nil, status.Errorf(codes.ResourceExhausted, "node %s has %d streams", st.nodeID, s.cfg.NodeStreams)
	}
	if len(s.streams) == 0 {
		stopped := make(chan struct{})
		s.stop = func() { close(stopped) }
		go s.push(stopped)
	}
	end := make(chan error, 1)
	s.streams[st] = end
	s.nodes[st.nodeID] = st
	s.perNode[st.nodeID]++
	return end, nil
}

func (s *Server) close(st *stream) {
	s.mu.Lock()
	delete(s.streams, st)
	if s.perNode[st.nodeID]--; s.perNode[st.nodeID] == 0 {
		delete(s.perNode, st.nodeID)
	}
	if s.nodes[st.nodeID] == st {
		delete(s.nodes, st.nodeID)
		if s.perNode[st.nodeID] > 0 {
			s.stays(st.nodeID)
		}
	}
	s.leave(st.class)
	if len(s.streams) == 0 {
		s.stop()
	}
	s.mu.Unlock()
	s.metrics.streams.Dec()
	s.changed()
}

// stays makes the newest stream that a node still has the one that counts. It is called
// with mu held.
func (s *Server) stays(nodeID string) {
	for st := range s.streams {
		if now := s.nodes[nodeID]; st.nodeID == nodeID && (now == nil || st.connected.After(now.connected)) {
			s.nodes[nodeID] = st
		}
	}
}

// classify gives a stream, whose turn the caller has, the class of its
// subscription.
func (s *Server) classify(st *stream) {
	c := &class{scope: scope{allowed: st.scope.allowed, serves: st.scope.serves, all: st.scope.all, spaces: maps.Clone(st.scope.spaces), governing: maps.Clone(st.scope.governing)},
		can: st.can, declared: st.declared, manifest: st.manifest, seen: st.seen}
	sum := sha256.Sum256(fmt.Appendf(nil, "%v %t %t %s", c.can, c.declared, c.manifest, c.scope.key()))
	c.key = string(sum[:])
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams[st] == nil { // it is closed, and nobody would leave this one
		st.class = c
		return
	}
	s.leave(st.class)
	if known := s.classes[c.key]; known != nil {
		c = known
	} else {
		s.classes[c.key] = c
	}
	c.streams++
	st.class = c
}

// leave is called with mu held.
func (s *Server) leave(c *class) {
	if c == nil {
		return
	}
	if c.streams--; c.streams == 0 {
		delete(s.classes, c.key)
	}
}

// Proxies tells of every node that is connected: where it has come again before
// its last stream was seen to end, of the newer one.
func (s *Server) Proxies() []*adminv1.ProxyStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*adminv1.ProxyStatus
	for _, st := range s.nodes {
		out = append(out, st.status())
	}
	return out
}

// status is the stream as the fleet view shows it.
func (st *stream) status() *adminv1.ProxyStatus {
	st.mu.Lock()
	defer st.mu.Unlock()
	p := &adminv1.ProxyStatus{NodeId: st.nodeID, Info: st.info, Peer: st.peer, ConnectedAt: timestamppb.New(st.connected),
		SentRevision: st.sent, AckedRevision: st.acked, Withheld: st.withheld}
	for _, r := range st.held {
		p.Rejections = append(p.Rejections, r)
	}
	return p
}
