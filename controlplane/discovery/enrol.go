package discovery

import (
	"context"
	"strconv"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/weft-mesh/weft/controlplane/roster"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/resource"
)

// enrol has a stream's node in the roster before it is sent anything, and waits until
// this replica has read what the node must not be shown less than.
func (s *Server) enrol(ctx context.Context, st *stream) error {
	if s.cfg.Roster == nil {
		return nil
	}
	j := roster.Joining{Node: st.nodeID, Namespaces: st.info.Namespaces, Fresh: st.token == nil, Moves: st.declared && resource.KnowMoves(st.can)}
	if st.info.Leaves {
		j.Incarnation = st.info.Incarnation
	}
	at, err := s.cfg.Roster.Join(ctx, j)
	if err != nil {
		return rosterStatus(err)
	}
	if entry := s.cfg.Roster.Entry(st.nodeID, j.Incarnation); entry != 0 {
		if err := st.rpc.SetHeader(metadata.Pairs(EntryHeader, strconv.FormatInt(entry, 10))); err != nil {
			return err
		}
	}
	return s.awaitChange(ctx, at)
}

// awaitChange waits until this replica has read a change; not where it keeps what it has
// on purpose.
func (s *Server) awaitChange(ctx context.Context, at roster.At) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.CatchUp)
	defer cancel()
	for at != (roster.At{}) {
		snap, changed := s.cfg.Source.Snapshot()
		if snap.Lineage == at.Lineage && snap.Revision >= at.Revision {
			break
		}
		if message, _ := s.cfg.Source.Suspected(); message != "" {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return status.Errorf(codes.Unavailable, "this control plane has read up to revision %d, etcd has changes up to %d; try another", snap.Revision, at.Revision)
		}
	}
	return nil
}

// refusal is why the roster has a node refused; nil where it has not.
func (s *Server) refusal(nodeID string) error {
	if s.cfg.Roster == nil {
		return nil
	}
	if err := s.cfg.Roster.Refusal(nodeID); err != nil {
		return rosterStatus(err)
	}
	return nil
}

// EndNode ends the streams of a node for a reason of the roster's.
func (s *Server) EndNode(nodeID string, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for st, ended := range s.streams {
		if st.nodeID != nodeID {
			continue
		}
		select {
		case ended <- rosterStatus(why):
		default:
		}
	}
}

func rosterStatus(err error) error {
	code := codes.Unavailable
	switch fault.ClassOf(err) {
	case fault.Precondition:
		code = codes.FailedPrecondition
	case fault.Throttled:
		code = codes.ResourceExhausted
	}
	return status.Error(code, fault.From(err).Msg)
}
