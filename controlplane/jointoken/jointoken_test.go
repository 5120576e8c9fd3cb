package jointoken

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// TestHangs: whoever asks something of the tokens hears, before long, that etcd does not
// answer, where it hangs.
func TestHangs(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0") // it takes connections, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"http://" + l.Addr().String()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	tokens := New(Config{Etcd: client, Prefix: "/weft/m/join/", Log: slog.New(slog.DiscardHandler)})
	var all sync.WaitGroup
	for what, ask := range map[string]func() error{
		"create": func() error { _, _, err := tokens.Create(ctx, "a", nil, time.Time{}); return err },
		"list":   func() error { _, err := tokens.List(ctx); return err },
		"revoke": func() error { return tokens.Revoke(ctx, []string{"a"}) },
	} {
		all.Go(func() {
			if err := ask(); !strings.Contains(fmt.Sprint(err), "etcd does not answer") || ctx.Err() != nil {
				t.Errorf("%s: %v, %v", what, err, ctx.Err())
			}
		})
	}
	all.Wait()
}
