package weft

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/pkg/event"

	"github.com/weft-mesh/weft/tools/proxycmd"
)

func benchCommand() *cobra.Command {
	var (
		proxy                   proxyFlags
		namespace               string
		publishers, batch, size int
		duration                time.Duration
	)
	cmd := &cobra.Command{Use: "bench TOPIC", Short: "Publish as fast as a topic takes it, and say how fast that was", Args: cobra.ExactArgs(1),
		Example: "  weft bench orders --publishers 64 --size 1024 --duration 10s",
		RunE: func(cmd *cobra.Command, args []string) error {
			if publishers < 1 || publishers > 1000 || batch < 1 || batch > 1000 || size < 0 || size > 1<<20 || duration <= 0 || duration > 10*time.Minute {
				return errors.New("publishers and batch are 1 to 1000, size at most 1 MiB, duration at most 10m")
			}
			c, err := proxy.dial()
			if err != nil {
				return err
			}
			defer c.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), duration)
			defer cancel()
			var mu sync.Mutex
			var took []time.Duration
			kept, failed := 0, 0
			var first error
			var wg sync.WaitGroup
			data := make([]byte, size)
			start := time.Now()
			for range publishers {
				wg.Go(func() {
					run := uuid.NewString()
					for n := 0; ctx.Err() == nil; n++ {
						events := make([]event.Event, batch)
						for i := range events {
							events[i] = event.Event{ID: fmt.Sprintf("%s-%d-%d", run, n, i), Source: "/weft/bench", Type: "weft.bench", Data: data}
						}
						begun := time.Now()
						res, err := c.PublishBatch(ctx, namespace, args[0], events)
						if ctx.Err() != nil {
							return
						}
						d := time.Since(begun)
						mu.Lock()
						took = append(took, d)
						if err != nil {
							failed += batch
						}
						for _, r := range res {
							if r.Err == nil {
								kept++
							} else {
								failed++
								err = r.Err
							}
						}
						if first == nil {
							first = err
						}
						mu.Unlock()
						if err != nil {
							return
						}
					}
				})
			}
			wg.Wait()
			elapsed := time.Since(start)
			if kept == 0 && first != nil {
				return first
			}
			slices.Sort(took)
			at := func(q float64) time.Duration {
				return took[min(int(q*float64(len(took))), len(took)-1)].Round(10 * time.Microsecond)
			}
			if len(took) == 0 {
				return errors.New("nothing was answered in time")
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d events acknowledged in %s: %.0f/s (%d publishers, batches of %d, %d bytes)\nanswer to a batch: p50 %s, p99 %s, longest %s; %d events failed\n",
				kept, elapsed.Round(time.Millisecond), float64(kept)/elapsed.Seconds(), publishers, batch, size, at(0.5), at(0.99), took[len(took)-1].Round(10*time.Microsecond), failed)
			return nil
		}}
	proxy.add(cmd)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", proxycmd.Env("WEFT_NAMESPACE", "demo"), "namespace (WEFT_NAMESPACE)")
	cmd.Flags().IntVar(&publishers, "publishers", 64, "concurrent publishers")
	cmd.Flags().IntVar(&batch, "batch", 1, "events of a call")
	cmd.Flags().IntVar(&size, "size", 1024, "bytes of data")
	cmd.Flags().DurationVar(&duration, "duration", 10*time.Second, "how long")
	return cmd
}
