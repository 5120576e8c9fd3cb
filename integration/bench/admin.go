package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Changes of the configuration, one resource each, beside few and beside many.
const (
	adminFew     = 100
	adminMany    = 100000
	adminClients = 8
)

// adminApplies measures how many changes a second the admin API takes, beside bare
// transactions of etcd with as much in them. Changes follow one another: each is
// judged against all that came before it.
func adminApplies(ctx context.Context, r *run) error {
	endpoint, err := r.etcd(ctx)
	if err != nil {
		return err
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: strings.Split(endpoint, ",")})
	if err != nil {
		return err
	}
	defer client.Close()
	var bare []*contender
	for _, n := range []int{1, adminClients} {
		c := &contender{name: fmt.Sprintf("etcd, %d clients, two keys a transaction", n)}
		for w := range n {
			key, value := fmt.Sprintf("/%s-bare/%d/", r.ns, w), strings.Repeat("x", 256)
			c.workers = append(c.workers, func(ctx context.Context) (int, error) {
				_, err := client.Txn(ctx).Then(clientv3.OpPut(key+"a", value), clientv3.OpPut(key+"b", value)).Commit()
				return 1, err
			})
		}
		bare = append(bare, c)
	}
	var ours []*contender
	for _, present := range []int{adminFew, adminMany} {
		s, err := r.startControl(ctx, fmt.Sprintf("admin%d", present), present)
		if err != nil {
			return err
		}
		defer r.end(s)
		for _, n := range []int{1, adminClients} {
			c := &contender{name: fmt.Sprintf("weft, %d clients, %d resources there", n, present), pids: map[string]int{"control plane": s.pid}, ops: s.ops, id: "admin"}
			var version atomic.Int64
			for range n {
				c.workers = append(c.workers, func(ctx context.Context) (int, error) {
					i := rand.IntN(present)
					err := s.change(ctx, fleetSpace(i), fmt.Sprintf("s%d", i), fmt.Sprint(version.Add(1)))
					if status.Code(err) == codes.Aborted {
						return 0, nil // others were quicker, again and again
					}
					return 1, err
				})
			}
			ours = append(ours, c)
		}
	}
	if err := r.compare(ctx, append(bare, ours...)...); err != nil {
		return err
	}
	r.note("changes of one resource a second, one client: %s beside %d resources, %s beside %d (%.2f); %d clients: %s; bare etcd does %s and %s",
		spread(ours[0].rates, "%.0f"), adminFew, spread(ours[2].rates, "%.0f"), adminMany, median(ours[2].rates)/median(ours[0].rates),
		adminClients, spread(ours[3].rates, "%.0f"), spread(bare[0].rates, "%.0f"), spread(bare[1].rates, "%.0f"))
	return nil
}
