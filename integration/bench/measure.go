package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// worker does one piece of work and tells how many events that was.
type worker func(ctx context.Context) (events int, err error)

// contender is one way of doing the same thing.
type contender struct {
	name    string
	workers []worker
	// pids are processes whose CPU counts, by their name in the report.
	pids map[string]int
	// before is called before each measurement.
	before func(ctx context.Context) error
	// ops is the address of the operations of the proxy that is used, id tells
	// its profile from others.
	ops, id string
	rates   []float64
	cpu     map[string][]float64 // microseconds of CPU an event, by process
}

// own is the name of this process in reports: the load's side.
const own = "client"

// compare measures contenders in turns. Each measurement begins after a tenth of
// its time, so that connections and batches are there.
func (r *run) compare(ctx context.Context, all ...*contender) error {
	for range r.rounds {
		for _, c := range all {
			if err := r.measure(ctx, c); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	r.report(all...)
	return nil
}

// report prints what was measured of each.
func (r *run) report(all ...*contender) {
	for _, c := range all {
		r.printf("  %-46s %9s events/s", c.name, spread(c.rates, "%.0f"))
		for _, p := range sortedKeys(c.cpu) {
			r.printf("  %s %s µs", p, spread(c.cpu[p], "%.1f"))
		}
		r.printf("\n")
	}
}

func (r *run) measure(ctx context.Context, c *contender) error {
	if c.before != nil {
		if err := c.before(ctx); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var done atomic.Int64
	failures := make(chan error, len(c.workers))
	var wg sync.WaitGroup
	for _, w := range c.workers {
		wg.Go(func() {
			for ctx.Err() == nil {
				n, err := w(ctx)
				if err != nil {
					if ctx.Err() == nil {
						failures <- err
						cancel()
					}
					return
				}
				done.Add(int64(n))
			}
		})
	}
	wait(ctx, r.slice/10)
	n, began, cpu := done.Load(), time.Now(), c.spent()
	if r.profiles != "" && c.ops != "" {
		wg.Go(func() { r.profile(ctx, c) })
		stop, err := r.profileSelf(c)
		if err != nil {
			return err
		}
		defer stop()
	}
	wait(ctx, r.slice)
	n, took, after := done.Load()-n, time.Since(began), c.spent()
	cancel()
	wg.Wait()
	select {
	case err := <-failures:
		return err
	default:
	}
	if n == 0 {
		return errors.New("no event came through")
	}
	c.add(n, took, cpu, after)
	return nil
}

// profileOf keeps a CPU profile of a control plane over one slice, where profiles are
// asked for; wait waits until it is written.
func (r *run) profileOf(ctx context.Context, s *configServer, id string) (wait func()) {
	if r.profiles == "" {
		return func() {}
	}
	var wg sync.WaitGroup
	wg.Go(func() { r.profile(ctx, &contender{name: s.name, ops: s.ops, id: id}) })
	return wg.Wait
}

// profileName is the file of a contender's profile; whose says of which process, where it
// is not the proxy.
func (r *run) profileName(c *contender, whose string) string {
	return filepath.Join(r.profiles, strings.Map(func(x rune) rune {
		if x >= 'a' && x <= 'z' || x >= '0' && x <= '9' {
			return x
		}
		return '-'
	}, strings.ToLower(c.name))+"-"+c.id+whose+".pprof")
}

// profileSelf keeps a CPU profile of this process, the load's side, until stop.
func (r *run) profileSelf(c *contender) (stop func(), err error) {
	f, err := os.Create(r.profileName(c, "-"+own))
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() {
		pprof.StopCPUProfile()
		if err := f.Close(); err != nil {
			r.printf("  no profile: %v\n", err)
		}
	}, nil
}

// profile keeps a CPU profile of the proxy over one measurement.
func (r *run) profile(ctx context.Context, c *contender) {
	name := r.profileName(c, "")
	err := func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", c.ops, max(1, int(r.slice.Seconds())-1)), nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		return os.WriteFile(name, b, 0o600)
	}()
	if err != nil {
		r.printf("  no profile: %v\n", err)
	}
}

// add records one measurement.
func (c *contender) add(n int64, took time.Duration, before, after map[string]time.Duration) {
	c.rates = append(c.rates, float64(n)/took.Seconds())
	if c.cpu == nil {
		c.cpu = map[string][]float64{}
	}
	for p, d := range after {
		c.cpu[p] = append(c.cpu[p], float64((d-before[p]).Microseconds())/float64(n))
	}
}

// spent is the CPU time so far of this process and of the contender's.
func (c *contender) spent() map[string]time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	out := map[string]time.Duration{own: time.Duration(u.Utime.Nano() + u.Stime.Nano())}
	for name, pid := range c.pids {
		out[name] = cpuOf(pid)
	}
	return out
}

// tick is the unit of /proc/PID/stat (USER_HZ).
const tick = 10 * time.Millisecond

// cpuOf is the CPU time of a process, 0 where that cannot be read.
func cpuOf(pid int) time.Duration {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	// The command's name, in parentheses, may have spaces.
	_, rest, _ := strings.Cut(string(b), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * tick
}

// residentOf is the resident memory of a process in bytes.
func residentOf(pid int) int64 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b))
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

// wait waits for d or the end of ctx.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

func spread(v []float64, format string) string {
	if len(v) < 2 {
		return fmt.Sprintf(format, median(v))
	}
	return fmt.Sprintf(format+" ["+format+".."+format+"]", median(v), slices.Min(v), slices.Max(v))
}

// ratio compares two contenders round by round, since what disturbs one round
// disturbs both of it.
func ratio(a, b *contender) []float64 {
	out := make([]float64, min(len(a.rates), len(b.rates)))
	for i := range out {
		out[i] = a.rates[i] / b.rates[i]
	}
	return out
}

// more is how much more CPU an event costs in process p of a than in q of b.
func more(a *contender, p string, b *contender, q string) []float64 {
	out := make([]float64, min(len(a.cpu[p]), len(b.cpu[q])))
	for i := range out {
		out[i] = a.cpu[p][i] - b.cpu[q][i]
	}
	return out
}

// best is the contender with the highest rate.
func best(all ...*contender) *contender {
	return slices.MaxFunc(all, func(a, b *contender) int {
		switch x, y := median(a.rates), median(b.rates); {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	})
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
