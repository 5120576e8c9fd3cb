// Package election elects, through etcd, the one replica that holds an office,
// and fences what its holder writes: a holder that was paused and comes back
// after another was elected can no longer write.
package election

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/weft-mesh/weft/pkg/outage"
)

// Config of an office.
type Config struct {
	Client *clientv3.Client
	// Key below which candidates queue; without a slash at its end.
	Key string
	// TTL is how long a holder may be out of etcd's sight, in whole seconds;
	// 10 s when 0.
	TTL time.Duration
	// Offices, if set, is told while the office is held.
	Offices *Offices
	// Log has a line where a term ends by an error, and where standing for election
	// begins to fail and works again.
	Log *slog.Logger
}

// Term is one time in office.
type Term struct{ mutex *concurrency.Mutex }

// Fence compares true in a transaction of etcd while this term lasts: whoever
// writes in office puts it among the transaction's conditions.
func (t Term) Fence() clientv3.Cmp { return t.mutex.IsOwner() }

// ErrOver is returned by Write where the term had ended.
var ErrOver = errors.New("the term of office is over; another replica may hold it")

// Write does ops in one transaction if the term still lasts, else ErrOver.
func (t Term) Write(ctx context.Context, client *clientv3.Client, ops ...clientv3.Op) error {
	resp, err := client.Txn(ctx).If(t.Fence()).Then(ops...).Commit()
	if err != nil {
		return err
	}
	if !resp.Succeeded {
		return ErrOver
	}
	return nil
}

// between is the wait before standing again, or half as much again.
const between = 500 * time.Millisecond

// Run stands for election until ctx ends and calls work in each term. The
// context of work ends with the term; where work returns first, the office is
// given up, and another replica may come first the next time. Work's error is
// logged, not returned.
func Run(ctx context.Context, cfg Config, work func(context.Context, Term) error) {
	if cfg.TTL == 0 {
		cfg.TTL = 10 * time.Second
	}
	log := cfg.Log.With("office", cfg.Key)
	candidacy := outage.New(log, "cannot stand for election; trying again", "standing for election again")
	for ctx.Err() == nil {
		if err := term(ctx, cfg, candidacy, work); err != nil && ctx.Err() == nil {
			log.Warn("a term of office ended; standing for election again", "error", err)
		}
		timer := time.NewTimer(between + rand.N(between))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// term stands for election once, and serves. Its error is that of the office held.
func term(ctx context.Context, cfg Config, candidacy *outage.Log, work func(context.Context, Term) error) error {
	session, err := concurrency.NewSession(cfg.Client, concurrency.WithTTL(int(cfg.TTL/time.Second)), concurrency.WithContext(ctx))
	if err != nil {
		stood(ctx, candidacy, err)
		return nil
	}
	defer session.Close()
	mutex := concurrency.NewMutex(session, cfg.Key)
	if err := mutex.Lock(ctx); err != nil {
		stood(ctx, candidacy, err)
		return nil
	}
	stood(ctx, candidacy, nil)
	defer func() {
		// Give the office up at once; without etcd the lease does it.
		uctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = mutex.Unlock(uctx)
	}()
	wctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-session.Done():
			cancel(ErrOver)
		case <-wctx.Done():
		}
	}()
	defer cfg.Offices.hold(path.Base(cfg.Key))()
	err = work(wctx, Term{mutex})
	if cause := context.Cause(wctx); errors.Is(cause, ErrOver) {
		return fmt.Errorf("the election's lease was lost: %w", cause)
	}
	return err
}

func stood(ctx context.Context, candidacy *outage.Log, err error) {
	if ctx.Err() == nil {
		candidacy.Is(err)
	}
}
