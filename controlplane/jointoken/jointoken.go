// Package jointoken keeps the tokens with which proxies may join: in etcd, as
// hashes, each bound to a node id and, where it says so, to namespaces and a time.
// Every replica follows them, and goes on with what it knows while etcd is away.
package jointoken

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weft-mesh/weft/controlplane/follow"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/outage"
)

const (
	// head is what every token begins with.
	head = "weftjoin_"
	// maxToken bounds a token that is looked at, in bytes.
	maxToken = 256
	// askTime bounds what an operator asks of etcd: he is to hear that it hangs.
	askTime = 5 * time.Second
	// maxTokens bounds how many there may be.
	maxTokens = 100000
	// retryAfter is the wait before etcd is read again.
	retryAfter = time.Second
)

// Token is a join token without its secret. It is not changed.
type Token struct {
	ID string `json:"id"`
	// Hash is the SHA-256 of the whole token.
	Hash []byte `json:"hash"`
	// NodeID is the one that may use it.
	NodeID string `json:"node_id"`
	// Namespaces that it opens; all when empty.
	Namespaces []string  `json:"namespaces,omitempty"`
	Created    time.Time `json:"created"`
	// Expires is when it ends; never when zero.
	Expires time.Time `json:"expires,omitzero"`
}

// Config of Tokens.
type Config struct {
	Etcd *clientv3.Client
	// Prefix is where the tokens' keys begin; it ends with a slash.
	Prefix string
	// Lineage is the key of the lineage that etcd is of.
	Lineage string
	Clock   clock.Clock
	Log     *slog.Logger
}

// Tokens are the join tokens of a mesh. Methods are safe for concurrent use.
type Tokens struct {
	cfg Config
	now *latest.Value[map[string]*Token] // by id; nil before they were read; not changed
}

// New makes Tokens; Run follows them.
func New(cfg Config) *Tokens {
	return &Tokens{cfg: cfg, now: latest.New[map[string]*Token](nil)}
}

// Run follows the tokens until ctx ends.
func (t *Tokens) Run(ctx context.Context) error {
	away := outage.New(t.cfg.Log, "join tokens cannot be followed; those that are known stay in force", "join tokens are followed again")
	keys := follow.Keys{Etcd: t.cfg.Etcd, Prefix: t.cfg.Prefix, Lineage: t.cfg.Lineage}
	for ctx.Err() == nil {
		if err := t.follow(ctx, &keys, away); err != nil && ctx.Err() == nil {
			away.Is(err)
		}
		timer := time.NewTimer(retryAfter)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
	return nil
}

func (t *Tokens) follow(ctx context.Context, keys *follow.Keys, away *outage.Log) error {
	return keys.Run(ctx, func(resp *clientv3.GetResponse, _ bool) error {
		all := map[string]*Token{}
		for _, kv := range resp.Kvs {
			t.put(all, kv)
		}
		t.now.Store(all)
		away.Is(nil)
		return nil
	}, func(events []*clientv3.Event) {
		all := maps.Clone(t.now.Get())
		for _, e := range events {
			if e.Type == clientv3.EventTypeDelete {
				delete(all, strings.TrimPrefix(string(e.Kv.Key), t.cfg.Prefix))
			} else {
				t.put(all, e.Kv)
			}
		}
		t.now.Store(all)
	})
}

func (t *Tokens) put(all map[string]*Token, kv *mvccpb.KeyValue) {
	id := strings.TrimPrefix(string(kv.Key), t.cfg.Prefix)
	var tok Token
	if err := json.Unmarshal(kv.Value, &tok); err != nil || tok.ID != id || tok.NodeID == "" || len(tok.Hash) != sha256.Size {
		t.cfg.Log.Error("a join token in etcd cannot be read; nobody joins with it", "id", id)
		delete(all, id)
		return
	}
	all[id] = &tok
}

func invalid(format string, args ...any) error {
	return fault.New(fault.Invalid, "join token", "join-token-invalid", "%s", fmt.Sprintf(format, args...))
}

// Create makes a token and gives it with its secret, which is not kept.
func (t *Tokens) Create(ctx context.Context, nodeID string, namespaces []string, expires time.Time) (string, *Token, error) {
	if !names.ValidNodeID(nodeID) {
		return "", nil, invalid("node_id must be 1 to 128 of [A-Za-z0-9._-]")
	}
	for i, ns := range namespaces {
		if err := names.CheckNamespace(ns); err != nil {
			return "", nil, invalid("namespaces[%d]: %v", i, err)
		}
	}
	now := t.cfg.Clock.Now()
	if !expires.IsZero() && !now.Before(expires) {
		return "", nil, invalid("expires_at must be in the future")
	}
	if len(t.now.Get()) >= maxTokens {
		return "", nil, fault.New(fault.Throttled, "join token", "too-many-join-tokens", "there are %d join tokens; revoke some", maxTokens)
	}
	drawn := make([]byte, 40)
	_, _ = rand.Read(drawn) // never fails
	text := strings.ToLower(base32.StdEncoding.EncodeToString(drawn))
	id, token := text[:12], head+text[:12]+"_"+text[12:]
	sum := sha256.Sum256([]byte(token))
	tok := &Token{ID: id, Hash: sum[:], NodeID: nodeID, Namespaces: slices.Sorted(slices.Values(namespaces)), Created: now.UTC(), Expires: expires}
	b, err := json.Marshal(tok)
	if err != nil {
		return "", nil, err
	}
	pctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	if _, err := t.cfg.Etcd.Put(pctx, t.cfg.Prefix+id, string(b)); err != nil {
		return "", nil, fault.New(fault.Unavailable, "join token", "etcd", "etcd does not answer; the token may or may not be there: list them")
	}
	t.await(ctx, func(all map[string]*Token) bool { return all[id] != nil })
	return token, tok, nil
}

// List gives all tokens, by id, as etcd has them.
func (t *Tokens) List(ctx context.Context) ([]*Token, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	resp, err := t.cfg.Etcd.Get(ctx, t.cfg.Prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, fault.New(fault.Unavailable, "join token", "etcd", "etcd does not answer")
	}
	all := map[string]*Token{}
	for _, kv := range resp.Kvs {
		t.put(all, kv)
	}
	out := slices.Collect(maps.Values(all))
	slices.SortFunc(out, func(a, b *Token) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

// Revoke ends tokens; ids that are not there are no error. All replicas learn of
// it at once, and end the streams that were opened with them.
func (t *Tokens) Revoke(ctx context.Context, ids []string) error {
	ops := make([]clientv3.Op, 0, len(ids))
	for _, id := range ids {
		if id == "" || strings.Contains(id, "/") {
			return invalid("%q is not the id of a join token", id)
		}
		ops = append(ops, clientv3.OpDelete(t.cfg.Prefix+id))
	}
	tctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	if _, err := t.cfg.Etcd.Txn(tctx).Then(ops...).Commit(); err != nil {
		return fault.New(fault.Unavailable, "join token", "etcd", "etcd does not answer; the tokens may or may not be revoked")
	}
	t.await(ctx, func(all map[string]*Token) bool {
		return !slices.ContainsFunc(ids, func(id string) bool { return all[id] != nil })
	})
	return nil
}

// seenWithin bounds the wait for this replica to see its own write.
const seenWithin = 2 * time.Second

// await waits a moment for this replica to see what it has written, so that whoever
// asks it next finds that; the others are not far.
func (t *Tokens) await(ctx context.Context, seen func(map[string]*Token) bool) {
	ctx, cancel := context.WithTimeout(ctx, seenWithin)
	defer cancel()
	for all, changed := t.now.Load(); all == nil || !seen(all); all, changed = t.now.Load() {
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// Check tells what a token is good for, and gives a channel that is closed when
// that may have changed. The error is Unauthenticated, or Unavailable before the
// tokens were read; it says nothing of the token.
func (t *Tokens) Check(token string) (*Token, <-chan struct{}, error) {
	all, changed := t.now.Load()
	if all == nil {
		return nil, changed, fault.New(fault.Unavailable, "join token", "not-read", "this control plane has not read the join tokens yet")
	}
	bad := fault.New(fault.Unauthenticated, "join token", "join-token", "the join token is not valid, has expired or was revoked")
	rest, ok := strings.CutPrefix(token, head)
	id, _, ok2 := strings.Cut(rest, "_")
	if !ok || !ok2 || len(token) > maxToken {
		return nil, changed, bad
	}
	tok, sum := all[id], sha256.Sum256([]byte(token))
	if tok == nil || subtle.ConstantTimeCompare(sum[:], tok.Hash) != 1 || !tok.Expires.IsZero() && !t.cfg.Clock.Now().Before(tok.Expires) {
		return nil, changed, bad
	}
	return tok, changed, nil
}
