package servers

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
)

// Ports below the range from which the kernel takes ports by itself, so that
// a server that is down keeps its own.
const (
	minPort = 10240
	maxPort = 32000
	// maxHeld bounds those that one process keeps from others: the oldest are given back.
	maxHeld = 4000
)

// ports are those that this process was given. A server listens some time after its
// port was chosen, and one that is killed comes back to it: until then the port is kept
// from other tests by a lock on its byte of a file, which ends with the process.
var ports struct {
	sync.Mutex
	file *os.File
	held map[int]bool
	old  []int // in order of time
}

// FreePort finds a loopback port p such that p and p+offset are free for each
// offset, and given to no other caller, of this process or another.
func FreePort(offsets ...int) (int, error) {
	ports.Lock()
	defer ports.Unlock()
	if ports.file == nil {
		cache, err := CacheDir()
		if err != nil {
			return 0, err
		}
		if err := os.MkdirAll(cache, 0o755); err != nil {
			return 0, err
		}
		if ports.file, err = os.OpenFile(filepath.Join(cache, "ports.lock"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
			return 0, err
		}
		ports.held = map[int]bool{}
	}
	for range 1000 {
		p := minPort + rand.IntN(maxPort-minPort)
		all := []int{p}
		for _, o := range offsets {
			all = append(all, p+o)
		}
		if took, err := take(all); took || err != nil {
			return p, err
		}
	}
	return 0, errors.New("no free loopback port found")
}

// take takes all ports or none.
func take(all []int) (bool, error) {
	for i, p := range all {
		took := !ports.held[p]
		if took {
			switch err := lockPort(p, syscall.F_WRLCK); {
			case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EACCES):
				took = false // another process has it
			case err != nil:
				return false, fmt.Errorf("lock %s: %w", ports.file.Name(), err)
			case !free(p):
				took = false
				_ = lockPort(p, syscall.F_UNLCK)
			}
		}
		if !took {
			for _, p := range all[:i] {
				delete(ports.held, p)
				_ = lockPort(p, syscall.F_UNLCK)
			}
			return false, nil
		}
		ports.held[p] = true
	}
	ports.old = append(ports.old, all...)
	for len(ports.old) > maxHeld {
		delete(ports.held, ports.old[0])
		_ = lockPort(ports.old[0], syscall.F_UNLCK)
		ports.old = ports.old[1:]
	}
	return true, nil
}

func lockPort(p int, how int16) error {
	return syscall.FcntlFlock(ports.file.Fd(), syscall.F_SETLK, &syscall.Flock_t{Type: how, Whence: io.SeekStart, Start: int64(p), Len: 1})
}

func free(port int) bool {
	l, err := net.Listen("tcp", ":"+strconv.Itoa(port))
	if err != nil {
		return false
	}
	_ = l.Close()
	return true
}
