package moves

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/store"
)

// stores are those that topics move between, open with the credentials for
// administration. Methods are safe for concurrent use.
type stores struct {
	drivers map[string]store.Driver
	options func(*configv1.EventStore) (kind string, options any, err error)
	log     *slog.Logger

	mu   sync.Mutex
	open map[string]opened // by EventStore uid
}

type opened struct {
	version string
	st      store.Store
}

// get gives an EventStore's store; it opens it where it is not open, or has changed.
func (s *stores) get(ctx context.Context, e *configstore.Entry) (store.Store, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	uid := e.Resource.Metadata.Uid
	if o, ok := s.open[uid]; ok {
		if o.version == e.Version() {
			return o.st, nil
		}
		s.close(o)
		delete(s.open, uid)
	}
	kind, options, err := s.options(e.Resource.GetEventStore())
	if err != nil {
		return nil, err
	}
	d := s.drivers[kind]
	if d == nil {
		return nil, fmt.Errorf("this control plane has no driver for %s", kind)
	}
	st, err := d.Open(ctx, store.Config{Name: e.Namespace + "/" + e.Resource.Metadata.Name, UID: uid, ClientID: "weft-moves-" + uid, Options: options, Log: s.log})
	if err != nil {
		return nil, err
	}
	s.open[uid] = opened{e.Version(), st}
	return st, nil
}

// admin is get of a store that can be administered.
func (s *stores) admin(ctx context.Context, e *configstore.Entry) (store.Admin, error) {
	st, err := s.get(ctx, e)
	if err != nil {
		return nil, fmt.Errorf("its store cannot be opened: %w", err)
	}
	admin, ok := st.(store.Admin)
	if !ok {
		return nil, errors.New("its store cannot be administered")
	}
	return admin, nil
}

func (s *stores) close(o opened) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if err := o.st.Close(ctx); err != nil {
		s.log.Warn("closing a store", "error", err)
	}
}

// keep closes all but those of used.
func (s *stores) keep(used map[string]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for uid, o := range s.open {
		if !used[uid] {
			s.close(o)
			delete(s.open, uid)
		}
	}
}
