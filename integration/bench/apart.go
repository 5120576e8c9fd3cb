package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
)

// onlyOn has a process, with all its threads and what it starts from now on, run on some
// CPUs, named as taskset does.
func onlyOn(ctx context.Context, pid int, cpus string) error {
	if out, err := exec.CommandContext(ctx, "taskset", "-a", "-c", "-p", cpus, strconv.Itoa(pid)).CombinedOutput(); err != nil {
		return fmt.Errorf("taskset: %w: %s", err, out)
	}
	return nil
}

// keepApart leaves the first CPU to a broker, as if it had a machine of its own: this
// process and what it starts have the others.
func keepApart(ctx context.Context) error {
	n := runtime.NumCPU()
	if n < 2 {
		return errors.New("-apart needs two CPUs")
	}
	runtime.GOMAXPROCS(n - 1)
	return onlyOn(ctx, os.Getpid(), fmt.Sprintf("1-%d", n-1))
}
