// Package servers starts the real servers that the mesh works with (RocketMQ,
// Kafka, etcd, Nacos) on free loopback ports, for tests and for trying things out.
//
// What a server needs is downloaded or built once, into a cache outside the
// tree (WEFT_CACHE, else ~/.cache/weft). A server keeps its ports and its data
// over Kill and Start; Stop removes both. No process outlives the one that
// started it.
package servers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// Process is one server process that can be killed and started again. Its
// methods may be called by one goroutine at a time.
type Process struct {
	Name string
	// Args is the command line, Env what it gets beside the own environment.
	Args []string
	Env  []string
	// Log is the file that its output goes to.
	Log string
	// Ready is asked again and again until it gives nil. It gets what the
	// process has printed since its start.
	Ready func(ctx context.Context, output []byte) error

	mu   sync.Mutex
	pid  int
	done chan struct{} // closed when the process is gone
	exit int           // its status once it is gone
	from int64         // where this start's output begins in Log
}

// pollInterval is how often a server is asked whether it is ready.
const pollInterval = 50 * time.Millisecond

// Start starts the process and waits until it is ready. ctx bounds the wait.
func (p *Process) Start(ctx context.Context) error {
	f, err := os.OpenFile(p.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	if p.from, err = f.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	cmd := exec.Command(p.Args[0], p.Args[1:]...)
	cmd.Env = append(os.Environ(), p.Env...)
	cmd.Stdout, cmd.Stderr = f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}

	started := make(chan error, 1)
	done := make(chan struct{})
	go func() {
		// The kernel sends the death signal when the thread that started the
		// process ends, so the thread stays until the process is gone.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer f.Close()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
			p.mu.Lock()
			p.exit = cmd.ProcessState.ExitCode()
			p.mu.Unlock()
		}
		close(done)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	p.mu.Lock()
	p.pid, p.done = cmd.Process.Pid, done
	p.mu.Unlock()

	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		last := p.Ready(ctx, p.output())
		if last == nil {
			return nil
		}
		select {
		case <-done:
			return fmt.Errorf("%s ended before it was ready; its log ends with:\n%s", p.Name, p.tail())
		case <-ctx.Done():
			_ = p.Kill()
			return fmt.Errorf("%s did not get ready: %w (%w); its log ends with:\n%s", p.Name, ctx.Err(), last, p.tail())
		case <-tick.C:
		}
	}
}

// Kill ends the process at once (kill -9) and waits until it is gone.
func (p *Process) Kill() error { return p.end(syscall.SIGKILL) }

// Stop asks the process to end, kills it when that takes longer than 10 s, and
// waits until it is gone.
func (p *Process) Stop() error { return p.end(syscall.SIGTERM) }

// Terminate asks the process to end, as for an upgrade, and waits until it has, however
// long that takes it. ctx bounds the wait.
func (p *Process) Terminate(ctx context.Context) error {
	if err := p.signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s does not end: %w", p.Name, ctx.Err())
	}
}

// Pause stops the process in its tracks (SIGSTOP); Resume lets it go on.
func (p *Process) Pause() error { return p.signal(syscall.SIGSTOP) }

// Resume lets a paused process go on.
func (p *Process) Resume() error { return p.signal(syscall.SIGCONT) }

// Alive reports whether the process runs.
func (p *Process) Alive() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// PID is the process's id; 0 before the first start.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid
}

// ExitStatus is with what the process of the last start ended, -1 where a signal
// ended it.
func (p *Process) ExitStatus() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exit
}

// Done is closed when the process of the last start is gone.
func (p *Process) Done() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done
}

func (p *Process) signal(s syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done == nil {
		return nil
	}
	select {
	case <-p.done:
		return nil
	default:
	}
	if err := syscall.Kill(-p.pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	return nil
}

func (p *Process) end(s syscall.Signal) error {
	if !p.Alive() {
		return nil
	}
	if err := p.signal(s); err != nil {
		return err
	}
	if s != syscall.SIGKILL {
		// A paused process does not see the signal before it goes on.
		if err := p.signal(syscall.SIGCONT); err != nil {
			return err
		}
		timer := time.NewTimer(10 * time.Second)
		defer timer.Stop()
		select {
		case <-p.Done():
			return nil
		case <-timer.C:
		}
		if err := p.signal(syscall.SIGKILL); err != nil {
			return err
		}
	}
	<-p.Done()
	return nil
}

// Output is what the process has printed since its last start.
func (p *Process) Output() []byte { return p.output() }

// maxOutput bounds what is read of a log at once.
const maxOutput = 16 << 20

func (p *Process) output() []byte {
	f, err := os.Open(p.Log)
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, p.from, maxOutput))
	if err != nil {
		return nil
	}
	return b
}

func (p *Process) tail() []byte {
	b := p.output()
	lines := bytes.Split(bytes.TrimRight(b, "\n"), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-25):], []byte("\n"))
}
