package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// sharePeriod is how often a process has its share, in microseconds: short beside what a
// measurement sees.
const sharePeriod = 10_000

// limit lets a process, with all its threads, have so many CPUs, by a control group of its
// own, until undo is called after its end.
func limit(pid int, cpus float64) (undo func() error, err error) {
	root, quota := "/sys/fs/cgroup", strconv.Itoa(int(cpus*sharePeriod))
	set := [][2]string{{"cpu.max", quota + " " + strconv.Itoa(sharePeriod)}}
	if _, err := os.Stat(filepath.Join(root, "cpu")); err == nil { // version 1
		root = filepath.Join(root, "cpu")
		set = [][2]string{{"cpu.cfs_period_us", strconv.Itoa(sharePeriod)}, {"cpu.cfs_quota_us", quota}}
	}
	dir := filepath.Join(root, fmt.Sprintf("weft-bench-%d", pid))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, fmt.Errorf("-share needs control groups, and to be root: %w", err)
	}
	undo = func() error {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for range 100 { // the kernel may take a while to see the end of the process
			if err = os.Remove(dir); err == nil {
				break
			}
			<-tick.C
		}
		return err
	}
	for _, file := range append(set, [2]string{"cgroup.procs", strconv.Itoa(pid)}) {
		if err := os.WriteFile(filepath.Join(dir, file[0]), []byte(file[1]), 0o644); err != nil { //nolint:gosec // the kernel's file
			return nil, errors.Join(fmt.Errorf("-share: %w", err), undo())
		}
	}
	return undo, nil
}
