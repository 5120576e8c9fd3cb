package discovery

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/lineage"
	"github.com/weft-mesh/weft/pkg/names"
)

// awaitRevision is the fence: a proxy that has a newer revision than this replica,
// or another lineage that does not come before this one, is never shown an older
// one. Where etcd itself has not, it went back: that is for people to see.
func (s *Server) awaitRevision(ctx context.Context, nodeID string, token *discoveryv1.ResumeToken) error {
	wctx, cancel := context.WithTimeout(ctx, s.cfg.CatchUp)
	defer cancel()
	snap, changed := s.cfg.Source.Snapshot()
	if !shows(snap, token) {
		s.cfg.Source.CatchUp() // it may lack nothing but that nothing was changed
	}
	for !shows(snap, token) {
		select {
		case <-changed:
			snap, changed = s.cfg.Source.Snapshot()
			continue
		case <-wctx.Done():
		}
		break
	}
	if shows(snap, token) {
		return nil
	}
	type head struct {
		lineage  string
		revision int64
	}
	asked, err, _ := s.heads.Do("", func() (any, error) {
		hctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.CatchUp)
		defer cancel()
		lineage, revision, err := s.cfg.Source.Head(hctx)
		return head{lineage, revision}, err
	})
	if h, ok := asked.(head); err == nil && ok && h.lineage == token.Lineage && h.revision < token.Revision {
		s.alarms.raise(s.cfg.Clock.Now(), snap.Lineage, restoreSuspected, fmt.Sprintf("node %s says that it has revision %d, and etcd has only %d: if that is so, etcd was restored from a backup. "+
			"The proxy keeps its configuration; \"weft admin restore\" declares that what etcd has is in force", nodeID, token.Revision, h.revision))
		s.cfg.Log.Error("a proxy has a newer revision than etcd", "node", nodeID, "revision", token.Revision, "etcd", h.revision)
		return status.Errorf(codes.Unavailable, "etcd is at revision %d, the proxy has %d: etcd was restored from a backup", h.revision, token.Revision)
	} else if err == nil && ok && !lineage.Follows(h.lineage, token.Lineage) {
		s.alarms.raise(s.cfg.Clock.Now(), snap.Lineage, restoreSuspected, fmt.Sprintf("node %s says that it is of lineage %s, which etcd's, %s, does not follow: if that is so, etcd was emptied or restored from a backup, or the proxy was of another mesh. "+
			"The proxy keeps its configuration; \"weft admin restore\" declares that what etcd has is in force", nodeID, names.Text(token.Lineage, 100), h.lineage))
		s.cfg.Log.Error("a proxy is of a lineage that etcd's does not follow", "node", nodeID, "lineage", token.Lineage, "etcd", h.lineage)
		return status.Errorf(codes.Unavailable, "etcd is of lineage %s, the proxy of %s: etcd was emptied or restored from a backup, or the proxy is of another mesh", h.lineage, token.Lineage)
	}
	if token.Lineage != snap.Lineage {
		return status.Errorf(codes.Unavailable, "this control plane has not read of lineage %s yet, which the proxy has; try another", token.Lineage)
	}
	return status.Errorf(codes.Unavailable, "this control plane has read up to revision %d, the proxy has %d; try another", snap.Revision, token.Revision)
}

// shows reports whether a proxy with this token may be shown a snapshot.
func shows(snap *configstore.Snapshot, token *discoveryv1.ResumeToken) bool {
	if snap.Lineage == token.Lineage {
		return snap.Revision >= token.Revision
	}
	return lineage.Follows(snap.Lineage, token.Lineage)
}
