package admin

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
)

// shown is an entry as clients see it: with its version.
func shown(e *configstore.Entry) *configv1.Resource {
	r := proto.Clone(e.Resource).(*configv1.Resource)
	r.Metadata.Version = e.Version()
	return r
}

// Get returns one resource.
func (s *Service) Get(ctx context.Context, req *adminv1.GetRequest) (*adminv1.GetResponse, error) {
	if _, _, _, err := resource.Split(req.Name); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	snap, err := s.cfg.Store.Current()
	if err != nil {
		return nil, toStatus(err)
	}
	e := snap.Get(req.Name)
	if e == nil {
		return nil, status.Errorf(codes.NotFound, "%s does not exist", req.Name)
	}
	conditions, err := s.conditions(ctx, snap, nil)
	if err != nil {
		return nil, err
	}
	resp := &adminv1.GetResponse{Resource: shown(e), Revision: snap.Revision, Conditions: conditions(e)}
	if md := e.Resource.Metadata; e.Kind == resource.Migration && s.cfg.Progress != nil &&
		snap.Resource(resource.Name(resource.TopicBinding, md.Namespace, md.Name)).GetTopicBinding().GetMove().GetMigrationUid() == md.Uid {
		resp.Move = s.cfg.Progress(ctx, e.Name)
	}
	if req.Store == "" {
		return resp, nil
	}
	if e.Resource.GetTopic() == nil {
		return nil, status.Errorf(codes.InvalidArgument, "store: %s is no Topic, and needs nothing of a store", req.Name)
	}
	if name := resource.Name(resource.EventStore, e.Namespace, req.Store); snap.Get(name) == nil {
		return nil, status.Errorf(codes.NotFound, "%s does not exist", name)
	}
	resp.Needs = s.answers(ctx, snap, nil).by(e.Resource, req.Store)
	return resp, nil
}

// selection is the prefix of names for a kind and namespace, and what else must
// hold of an entry: that the caller may see it, too.
func selection(ctx context.Context, kind, namespace string) (prefix string, match func(*configstore.Entry) bool, err error) {
	who := callerOf(ctx)
	if namespace != "" {
		if err := names.CheckNamespace(namespace); err != nil {
			return "", nil, status.Error(codes.InvalidArgument, err.Error())
		}
	}
	if kind == "" {
		return "", func(e *configstore.Entry) bool {
			return (namespace == "" || e.Namespace == namespace) && who.sees(e.Namespace)
		}, nil
	}
	info, ok := resource.Lookup(kind)
	if !ok {
		return "", nil, status.Errorf(codes.InvalidArgument, "%q is not a kind", kind)
	}
	prefix = string(info.Kind) + "/"
	if namespace != "" {
		prefix += namespace + "/"
	}
	return prefix, func(e *configstore.Entry) bool { return who.sees(e.Namespace) }, nil
}

// Page sizes of List.
const (
	defaultPage = 500
	maxPage     = 1000
	// maxPageBytes ends a page early, so that an answer stays below gRPC's
	// limit on messages.
	maxPageBytes = 2 << 20
)

// List returns a page of resources.
func (s *Service) List(ctx context.Context, req *adminv1.ListRequest) (*adminv1.ListResponse, error) {
	prefix, match, err := selection(ctx, req.Kind, req.Namespace)
	if err != nil {
		return nil, err
	}
	start, err := base64.RawURLEncoding.DecodeString(req.PageToken)
	if err != nil || len(start) > 256 || !strings.HasPrefix(string(start), prefix) && len(start) > 0 {
		return nil, status.Error(codes.InvalidArgument, "page_token is not one that List gave")
	}
	snap, err := s.cfg.Store.Current()
	if err != nil {
		return nil, toStatus(err)
	}
	size := min(int(req.PageSize), maxPage)
	if size == 0 {
		size = defaultPage
	}
	resp := &adminv1.ListResponse{Revision: snap.Revision}
	bytes := 0
	for e := range snap.From(prefix, string(start)) {
		if !match(e) {
			continue
		}
		if bytes += len(e.Bytes); len(resp.Resources) == size || len(resp.Resources) > 0 && bytes > maxPageBytes {
			resp.NextPageToken = base64.RawURLEncoding.EncodeToString([]byte(e.Name))
			break
		}
		resp.Resources = append(resp.Resources, shown(e))
	}
	return resp, nil
}

// watchPart is how many resources a message of a watch has at most.
const watchPart = 200

// Watch sends what exists and then every change.
func (s *Service) Watch(req *adminv1.WatchRequest, stream grpc.ServerStreamingServer[adminv1.WatchResponse]) error {
	who := callerOf(stream.Context())
	prefix, match, err := selection(stream.Context(), req.Kind, req.Namespace)
	if err != nil {
		return err
	}
	snap, changed := s.cfg.Store.Snapshot()
	if snap == nil {
		_, err := s.cfg.Store.Current()
		return toStatus(err)
	}
	parts := watchParts{stream: stream, revision: snap.Revision, initial: true}
	for e := range snap.All(prefix) {
		if match(e) {
			if err := parts.changed(e); err != nil {
				return err
			}
		}
	}
	if err := parts.end(); err != nil {
		return err
	}
	for sent := snap; ; {
		select {
		case <-changed:
		case <-stream.Context().Done():
			return nil
		}
		snap, changed = s.cfg.Store.Snapshot()
		list, ok := snap.Since(sent.Revision)
		if !ok || snap.Lineage != sent.Lineage {
			return status.Error(codes.Aborted, "the watch fell behind; watch again")
		}
		parts := watchParts{stream: stream, revision: snap.Revision}
		for _, name := range list {
			if !strings.HasPrefix(name, prefix) {
				continue
			}
			if e := snap.Get(name); e != nil {
				if match(e) {
					err = parts.changed(e)
				}
			} else if _, ns, _, bad := resource.Split(name); bad == nil && (req.Namespace == "" || ns == req.Namespace) && who.sees(ns) {
				err = parts.deleted(name)
			}
			if err != nil {
				return err
			}
		}
		sent = snap
		if err := parts.end(); err != nil {
			return err
		}
	}
}

// watchParts sends what there is to say in messages that a client takes.
type watchParts struct {
	stream   grpc.ServerStreamingServer[adminv1.WatchResponse]
	revision int64
	initial  bool
	part     *adminv1.WatchResponse
	size     int
}

func (w *watchParts) changed(e *configstore.Entry) error {
	if err := w.room(len(e.Bytes)); err != nil {
		return err
	}
	w.part.Changed = append(w.part.Changed, shown(e))
	return nil
}

func (w *watchParts) deleted(name string) error {
	if err := w.room(len(name)); err != nil {
		return err
	}
	w.part.Deleted = append(w.part.Deleted, name)
	return nil
}

// room makes room for n bytes, by sending what there is.
func (w *watchParts) room(n int) error {
	if w.part != nil && (w.size+n > maxPageBytes || len(w.part.Changed)+len(w.part.Deleted) == watchPart) {
		if err := w.stream.Send(w.part); err != nil {
			return err
		}
		w.part, w.size = nil, 0
	}
	if w.part == nil {
		w.part = &adminv1.WatchResponse{Revision: w.revision, Initial: w.initial}
	}
	w.size += n
	return nil
}

// end sends the last part: of what exists always one, of changes what there is.
func (w *watchParts) end() error {
	if w.part == nil {
		if !w.initial {
			return nil
		}
		w.part = &adminv1.WatchResponse{Revision: w.revision, Initial: true}
	}
	w.part.InitialEnd = w.initial
	return w.stream.Send(w.part)
}

// conditions gives a function that tells an entry's conditions. Those of topics
// and subscriptions follow from their admissions, those of stores from what the
// provisioner saw, those of what only proxies enforce from how it stands there,
// where that is known.
func (s *Service) conditions(ctx context.Context, snap *configstore.Snapshot, at *standing) (func(*configstore.Entry) []*adminv1.Condition, error) {
	seen, err := s.cfg.Conditions(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	answers := s.answers(ctx, snap, nil)
	return func(e *configstore.Entry) []*adminv1.Condition {
		md := e.Resource.Metadata
		out := seen[e.Name]
		if instead, why := snap.Served(e.Name); why != nil {
			then := "there is no version before it, and what it governs is denied"
			if instead != nil {
				then = "proxies are sent version " + instead.Version()
			}
			out = append(slices.Clone(out), &adminv1.Condition{Type: "Quarantined", State: adminv1.Condition_STATE_TRUE, Reason: "Refused",
				Message: fmt.Sprintf("%s refused version %s (%s); %s", strings.Join(why.Nodes, ", "), why.Version, why.Reason, then)})
		}
		switch e.Kind {
		case resource.Topic:
			a := snap.Resource(resource.Name(resource.TopicAdmission, md.Namespace, md.Name)).GetTopicAdmission()
			ready := a.GetTopicUid() == md.Uid && a.Admitted
			reasons := a.GetReasons()
			if in := storeOf(snap, e.Resource); ready && in != "" {
				reasons = append([]string{"in EventStore " + in}, reasons...)
			}
			out = append(out, condition(ready, reasons, "Provisioned", "NotProvisioned"))
			if c := answers.condition(e.Resource, ready); c != nil {
				out = append(out, c)
			}
		case resource.Subscription:
			a := snap.Resource(resource.Name(resource.SubscriptionAdmission, md.Namespace, md.Name)).GetSubscriptionAdmission()
			ready := a.GetSubscriptionUid() == md.Uid && len(a.Sources) > 0
			out = append(out, condition(ready, a.GetReasons(), "StartFixed", "StartNotFixed"))
		case resource.Route, resource.HTTPBinding, resource.AccessPolicy, resource.Quota, resource.Identity:
			if at != nil {
				out = append(slices.Clip(out), at.stands(e).condition())
			}
		}
		return out
	}, nil
}

func condition(ready bool, reasons []string, yes, no string) *adminv1.Condition {
	c := &adminv1.Condition{Type: "Ready", State: adminv1.Condition_STATE_TRUE, Reason: yes, Message: strings.Join(reasons, "; ")}
	if !ready {
		c.State, c.Reason = adminv1.Condition_STATE_FALSE, no
	}
	return c
}
