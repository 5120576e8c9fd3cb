package listener

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// stale leaves a socket as a process does that is killed.
func stale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestSocket: it has its mode from the start, whatever the umask says, is bounded as
// every listener is, and is gone once it is stopped or closed.
func TestSocket(t *testing.T) {
	for _, tc := range []struct {
		mode, umask fs.FileMode
		end         func(*Listener) error
	}{
		{0o660, 0o022, (*Listener).Close},
		{0o600, 0, func(l *Listener) error { l.Stop(); return nil }},
		{0o666, 0o077, func(l *Listener) error { l.Stop(); return l.Close() }},
	} {
		path := filepath.Join(t.TempDir(), "s")
		before := syscall.Umask(int(tc.umask))
		l, err := ListenSocket(path, tc.mode, 1)
		syscall.Umask(before)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		info, err := os.Lstat(path)
		if err != nil || info.Mode() != fs.ModeSocket|tc.mode {
			t.Errorf("%v, %v; want the mode %v", info.Mode(), err, tc.mode)
		}
		if got := l.Addr().String(); got != "unix:"+path {
			t.Errorf("its address is %s", got)
		}
		in := make(chan net.Conn)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					close(in)
					return
				}
				in <- c
			}
		}()
		first, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer first.Close()
		served := <-in
		more, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer more.Close()
		if _, err := more.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("one too many: %v", err)
		}
		if err := tc.end(l); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("its file is there after its end: %v", err)
		}
		// What was accepted goes on.
		if _, err := served.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadFull(first, make([]byte, 1)); err != nil {
			t.Error(err)
		}
	}
}

// TestSocketInTheWay: what a dead process left is replaced; what somebody listens on,
// and what is no socket, stays as it is, and the error says what to do.
func TestSocketInTheWay(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	listens := func() (*Listener, error) { return ListenSocket(path, SocketMode, 10) }
	stale(t, path)
	l, err := listens()
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listens(); err == nil || !strings.Contains(err.Error(), "another process listens on "+path+": stop it, or name another path") {
		t.Errorf("a socket in use: %v", err)
	}
	if now, err := os.Lstat(path); err != nil || !os.SameFile(before, now) {
		t.Errorf("a socket in use was replaced: %v", err)
	}
	// Somebody took the place of the file by force: that is not removed.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other, err := listens()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if c, err := net.Dial("unix", path); err != nil {
		t.Errorf("the socket of another was removed: %v", err)
	} else {
		_ = c.Close()
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	for name, make := range map[string]func() error{
		"file": func() error { return os.WriteFile(path, []byte("x"), 0o600) }, "folder": func() error { return os.Mkdir(path, 0o700) },
		"link": func() error { return os.Symlink(filepath.Join(filepath.Dir(path), "away"), path) },
	} {
		if err := make(); err != nil {
			t.Fatal(err)
		}
		if _, err := listens(); err == nil || !strings.Contains(err.Error(), path+" is there and is not a socket") {
			t.Errorf("a %s: %v", name, err)
		}
		if err := os.Remove(path); err != nil {
			t.Errorf("a %s was removed: %v", name, err)
		}
	}
	if _, err := ListenSocket(filepath.Join(t.TempDir(), "none", "s"), SocketMode, 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder that is not there: %v", err)
	}
}

// TestSocketTaken: of many that find the same stale socket, one has it, and its file
// is the one that it made.
func TestSocketTaken(t *testing.T) {
	for range 50 {
		path := filepath.Join(t.TempDir(), "s")
		stale(t, path)
		var got atomic.Pointer[Listener]
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				l, err := ListenSocket(path, SocketMode, 1)
				switch {
				case err == nil && !got.CompareAndSwap(nil, l):
					t.Error("two listen on it")
					_ = l.Close()
				case err != nil && !strings.Contains(err.Error(), "another process listens"):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		l := got.Load()
		if l == nil {
			t.Fatal("nobody listens")
		}
		if c, err := net.Dial("unix", path); err != nil {
			t.Errorf("it does not answer: %v", err)
		} else {
			_ = c.Close()
		}
		_ = l.Close()
	}
}
