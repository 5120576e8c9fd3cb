package admin

import (
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/configfile"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
)

const (
	// maxExported bounds the namespaces that an export names.
	maxExported = 1000
	// exportPart is how much of the file a message has at most.
	exportPart = 1 << 20
	// exportTime bounds how long a caller that does not read keeps others waiting.
	exportTime = 30 * time.Second
)

// ExportSnapshot sends the file that starts a proxy of these namespaces without a
// control plane: what such a proxy would be sent, at one revision.
func (s *Service) ExportSnapshot(req *adminv1.ExportSnapshotRequest, stream grpc.ServerStreamingServer[adminv1.ExportSnapshotResponse]) error {
	if n := len(req.Namespaces); n > maxExported {
		return status.Errorf(codes.InvalidArgument, "namespaces: an export names at most %d, this one %d; it has all with none", maxExported, n)
	}
	for _, ns := range req.Namespaces {
		if err := names.CheckNamespace(ns); err != nil {
			return status.Errorf(codes.InvalidArgument, "namespaces: %v", err)
		}
	}
	select {
	case s.exporting <- struct{}{}:
		release := sync.OnceFunc(func() { <-s.exporting })
		defer release()
		defer time.AfterFunc(exportTime, release).Stop()
	case <-stream.Context().Done():
		return status.FromContextError(stream.Context().Err()).Err()
	}
	snap, err := s.cfg.Store.Current()
	if err != nil {
		return toStatus(err)
	}
	lg, err := exported(snap, req.Namespaces)
	if err != nil {
		return err
	}
	file, err := configfile.EncodeSnapshot(lg, s.cfg.SnapshotKey)
	if err != nil {
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	for part := range slices.Chunk(file, exportPart) {
		if err := stream.Send(&adminv1.ExportSnapshotResponse{Data: part}); err != nil {
			return err
		}
	}
	return nil
}

// exported is what proxies of these namespaces, all where there are none, are sent.
func exported(snap *configstore.Snapshot, namespaces []string) (*discoveryv1.LastGood, error) {
	lg := &discoveryv1.LastGood{Lineage: snap.Lineage, Revision: snap.Revision, Scope: configfile.Scope(namespaces)}
	there := slices.Collect(snap.Namespaces())
	if len(namespaces) == 0 {
		namespaces = there
	}
	for _, ns := range slices.Compact(slices.Sorted(slices.Values(namespaces))) {
		if !slices.Contains(there, ns) {
			return nil, status.Errorf(codes.NotFound, "namespaces: %s has no resources", ns)
		}
		for stored := range snap.Within(ns) {
			e, quarantine := snap.Served(stored.Name)
			if e != nil {
				lg.Resources = append(lg.Resources, &discoveryv1.KeptResource{Name: e.Name, OfferedVersion: e.Version(), Version: e.Version(),
					Resource: e.Bytes, OfferedDigest: e.Mark.Digest.Bytes()})
			} else if quarantine != nil {
				lg.Withheld = append(lg.Withheld, &configv1.Withheld{Name: stored.Name, Version: stored.Version(), Governs: resource.Governs(stored.Kind),
					Reason: "is quarantined, and there is no version before it: " + quarantine.GetReason()})
			}
		}
	}
	slices.SortFunc(lg.Resources, func(a, b *discoveryv1.KeptResource) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(lg.Withheld, func(a, b *configv1.Withheld) int { return strings.Compare(a.Name, b.Name) })
	return lg, nil
}
