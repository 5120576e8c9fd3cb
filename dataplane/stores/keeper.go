package stores

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// keeper keeps one EventStore open. Its goroutine alone opens, prepares and
// closes.
type keeper struct {
	m    *Manager
	uid  string
	name string
	made *made
	wake chan struct{} // capacity 1
	look chan struct{} // has watch check now; capacity 1

	mu      sync.Mutex
	wish    wish
	retired time.Time // when it was taken out of the configuration; zero while it is in
	// settled is the newest wish that was tried, and news is closed at the
	// next one.
	settled uint64
	news    chan struct{}
	// awaited: Apply was answered before its wish was tried or while it
	// failed, so that success is news to the proxy.
	awaited bool
	failure error // of the last try
	trouble error // of the last look at the open store
	st      Status

	// The goroutine's own.
	opened  store.Store
	openAs  *configv1.EventStore // what opened was opened with
	retryIn time.Duration
}

// wish is what the configuration asks for.
type wish struct {
	seq  uint64
	spec *configv1.EventStore
	work map[string]*topicWork
}

func newKeeper(m *Manager, s *snapshot.Store) *keeper {
	return &keeper{m: m, uid: s.UID, name: s.Key.String(), made: &made{topics: map[string]*madeTopic{}}, wake: make(chan struct{}, 1), look: make(chan struct{}, 1),
		news: make(chan struct{}), retryIn: minRetry, st: Status{Store: s.Key.String(), UID: s.UID, Problem: "not tried yet", Reason: "NotOpen", Since: time.Now()}}
}

// want replaces the wish.
func (k *keeper) want(s *snapshot.Store, work map[string]*topicWork) {
	k.mu.Lock()
	k.wish = wish{seq: k.wish.seq + 1, spec: s.Spec, work: work}
	k.retired = time.Time{}
	k.awaited = false
	k.mu.Unlock()
	k.poke()
}

// retire begins the grace after which the store is closed.
func (k *keeper) retire() {
	k.mu.Lock()
	if k.retired.IsZero() {
		k.retired = time.Now()
	}
	k.mu.Unlock()
	k.poke()
}

func (k *keeper) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// await waits until the newest wish was tried once, well or badly, or ctx ends.
func (k *keeper) await(ctx context.Context) {
	for {
		k.mu.Lock()
		if k.settled >= k.wish.seq {
			k.awaited = k.failure != nil
			k.mu.Unlock()
			return
		}
		news := k.news
		k.mu.Unlock()
		select {
		case <-news:
		case <-ctx.Done():
			k.mu.Lock()
			k.awaited = k.settled < k.wish.seq || k.failure != nil
			k.mu.Unlock()
			return
		}
	}
}

func (k *keeper) status() Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.st
}

func (k *keeper) run() {
	defer k.end()
	ctx, cancel := context.WithCancel(k.m.life)
	watched := make(chan struct{})
	go func() { defer close(watched); k.watch(ctx) }()
	defer func() { cancel(); <-watched }()
	for {
		select {
		case <-k.wake:
		default:
		}
		k.mu.Lock()
		w, retired := k.wish, k.retired
		k.mu.Unlock()
		var again <-chan time.Time
		if retired.IsZero() {
			if err := k.try(w); err != nil {
				again = time.After(k.retryIn/2 + rand.N(k.retryIn))
				k.retryIn = min(2*k.retryIn, maxRetry)
			} else {
				k.retryIn = minRetry
			}
		} else {
			left := k.m.cfg.Grace - time.Since(retired)
			if left <= 0 && k.leave() {
				return
			}
			again = time.After(max(left, 0))
		}
		select {
		case <-k.wake:
		case <-again:
		case <-k.m.life.Done():
			return
		}
	}
}

// leave takes the keeper out of the manager, unless it was asked for again.
func (k *keeper) leave() bool {
	k.m.mu.Lock()
	defer k.m.mu.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.retired.IsZero() {
		return false
	}
	delete(k.m.keepers, k.uid)
	again := false // it was deleted and made again, with another uid
	for _, other := range k.m.keepers {
		again = again || other.name == k.name
	}
	if !again {
		k.m.metrics.open.DeleteLabelValues(k.name)
		k.m.metrics.failures.DeleteLabelValues(k.name)
	}
	// From here on another keeper may open the same store, if it is not one
	// that lives here: its folder is locked until this one is closed.
	k.m.setLocked(k.uid, entry{})
	return true
}

// end closes the store.
func (k *keeper) end() {
	if k.m.life.Err() != nil {
		k.m.set(k.uid, entry{})
	}
	if k.opened != nil {
		k.close(k.opened)
	}
}

// try makes the wish true, or says why not.
func (k *keeper) try(w wish) error {
	err := k.open(k.m.life, w)
	if err == nil {
		err = k.prepare(k.m.life, k.opened, w.work)
	}
	k.settle(w, err)
	return err
}

// settle records the outcome of a try.
func (k *keeper) settle(w wish, err error) {
	if err != nil {
		k.m.metrics.failures.WithLabelValues(k.name).Inc()
		k.m.cfg.Log.Warn("an event store does not work fully; trying again", "store", k.name, "error", err)
	}
	k.mu.Lock()
	k.failure = err
	k.describeLocked(k.opened != nil)
	k.settled = w.seq
	close(k.news)
	k.news = make(chan struct{})
	tell := err == nil && k.awaited
	if tell {
		k.awaited = false
	}
	k.mu.Unlock()
	if tell && k.m.cfg.Prepared != nil {
		k.m.cfg.Prepared()
	}
}

// describeLocked makes the status from what was seen last.
func (k *keeper) describeLocked(open bool) {
	problem, reason := "", ""
	err := k.failure
	if err == nil {
		err = k.trouble
	}
	if err != nil {
		other := "NotOpen"
		if open {
			other = "NotPrepared"
		}
		problem, reason = err.Error(), cmp.Or(store.Why(err), other)
	}
	if k.st.Open != open || k.st.Problem != problem || k.st.Reason != reason {
		k.st.Open, k.st.Problem, k.st.Reason, k.st.Since = open, problem, reason, time.Now()
	}
}

// watch looks again and again whether the open store's server is there and takes
// the credentials, until ctx ends. Calls go there all the same: a look only tells.
func (k *keeper) watch(ctx context.Context) {
	for {
		st, _ := k.m.Get(k.uid)
		if c, ok := st.(store.Checker); ok {
			cctx, cancel := context.WithTimeout(ctx, k.m.cfg.OpenTimeout)
			err := c.Check(cctx)
			cancel()
			if ctx.Err() != nil {
				return
			}
			k.looked(err)
		}
		timer := time.NewTimer(k.m.cfg.CheckEvery/2 + rand.N(k.m.cfg.CheckEvery))
		select {
		case <-k.look:
		case <-timer.C:
		case <-ctx.Done():
		}
		if timer.Stop(); ctx.Err() != nil {
			return
		}
	}
}

// looked records what a look at the open store said.
func (k *keeper) looked(err error) {
	k.mu.Lock()
	was := k.st.Reason
	k.trouble = err
	k.describeLocked(k.st.Open)
	now := k.st.Reason
	k.mu.Unlock()
	switch {
	case was == now:
	case err != nil:
		k.m.cfg.Log.Warn("an event store cannot be used", "store", k.name, "reason", now, "error", err)
	default:
		k.m.cfg.Log.Info("an event store can be used again", "store", k.name)
	}
}

// open opens the store, if it is not open as w says. A store that was open
// otherwise stays in use until the new one is open, and is closed after the
// grace.
func (k *keeper) open(ctx context.Context, w wish) error {
	spec := seen(w.spec)
	if k.opened != nil && proto.Equal(spec, k.openAs) {
		return nil
	}
	st, err := k.connect(ctx, w.spec)
	if err != nil {
		if k.opened == nil {
			k.m.metrics.open.WithLabelValues(k.name).Set(0)
			k.m.set(k.uid, entry{err: notOpen(k.name, err)})
		}
		return err
	}
	old := k.opened
	k.opened, k.openAs = st, spec
	k.m.set(k.uid, entry{st: st})
	select {
	case k.look <- struct{}{}:
	default:
	}
	k.m.metrics.open.WithLabelValues(k.name).Set(1)
	k.m.cfg.Log.Info("event store opened", "store", k.name)
	if old != nil {
		k.m.running.Go(func() { k.closeLater(old) })
	}
	return nil
}

// notOpen is what calls to a store are answered that did not open because of err.
func notOpen(name string, err error) error {
	if store.Why(err) == "SecretMissing" {
		return &fault.Error{Class: fault.Unavailable, Op: "stores", Reason: "store-secret-missing",
			Msg: "event store " + name + " cannot be opened: a credential of it is not on this proxy", RetryAfter: time.Second, Err: err}
	}
	return &fault.Error{Class: fault.Unavailable, Op: "stores", Reason: "store-not-open",
		Msg: "event store " + name + " cannot be opened", RetryAfter: time.Second, Err: err}
}

// seen is the part of an EventStore that a proxy's connection depends on.
func seen(spec *configv1.EventStore) *configv1.EventStore {
	c := proto.CloneOf(spec)
	c.Provisioning = configv1.Provisioning_PROVISIONING_UNSPECIFIED
	if r := c.GetRocketmq(); r != nil {
		r.AdminCredentials = nil
	}
	if r := c.GetKafka(); r != nil {
		r.AdminCredentials, r.ReplicationFactor = nil, 0
	}
	return c
}

func (k *keeper) connect(ctx context.Context, spec *configv1.EventStore) (store.Store, error) {
	kind, options, err := k.m.cfg.Options(spec)
	if err != nil {
		return nil, err
	}
	d := k.m.cfg.Drivers[kind]
	if d == nil {
		return nil, fmt.Errorf("this proxy has no driver for %q", kind)
	}
	// The uid becomes a folder's name.
	if _, err := uuid.Parse(k.uid); err != nil || filepath.Base(k.uid) != k.uid {
		return nil, errors.New("the event store's uid is not a UUID")
	}
	ctx, cancel := context.WithTimeout(ctx, k.m.cfg.OpenTimeout)
	defer cancel()
	return d.Open(ctx, store.Config{Name: k.name, UID: k.uid, ClientID: k.m.cfg.ClientID, Dir: filepath.Join(k.m.cfg.Dir, k.uid), Options: options,
		Window: k.m.cfg.Window, Refused: k.m.cfg.Refused, Log: k.m.cfg.Log.With("store", k.name)})
}

func (k *keeper) closeLater(st store.Store) {
	timer := time.NewTimer(k.m.cfg.Grace)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-k.m.life.Done():
	}
	k.close(st)
}

// closeTimeout bounds closing a store for which nobody waits.
const closeTimeout = 10 * time.Second

func (k *keeper) close(st store.Store) {
	ctx := context.Background()
	if k.m.life.Err() != nil {
		ctx = k.m.closing
	}
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	if err := st.Close(ctx); err != nil {
		k.m.cfg.Log.Warn("closing an event store", "store", k.name, "error", err)
	}
}
