package listener

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/weft-mesh/weft/pkg/unixaddr"
)

// SocketMode is the mode of sockets where none is named: the owner and the group
// may connect.
const SocketMode fs.FileMode = 0o660

// folderWait bounds the wait for others that make or remove a socket in the same
// folder, which takes them no time.
const folderWait = 5 * time.Second

// socket is a listener on a Unix socket, whose file it removes when it is closed.
type socket struct {
	*net.UnixListener
	path string
	made fs.FileInfo
	once sync.Once
}

// ListenSocket listens on a Unix socket at an absolute path, whose file gets a mode,
// and takes at most most connections at a time. A socket that nobody listens on any
// more is replaced; one that is in use, and what is no socket, is left alone and the
// error says so. Stop and Close remove the file.
func ListenSocket(path string, mode fs.FileMode, most int) (*Listener, error) {
	s, err := listenUnix(path, mode)
	if err != nil {
		return nil, err
	}
	return bounded(s, most)
}

func listenUnix(path string, mode fs.FileMode) (_ *socket, err error) {
	leave, err := enter(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := clearStale(path); err != nil {
		return nil, err
	}
	// It is never there with more rights than it is to have: on Linux a socket's file
	// gets the mode of the socket, on which nobody can listen before it is bound.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = syscall.Fchmod(int(fd), uint32(mode)) }) //nolint:gosec // a file descriptor
	}}
	l, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	ul, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("%T is no Unix socket", l), l.Close())
	}
	ul.SetUnlinkOnClose(false)
	s := &socket{UnixListener: ul, path: path}
	if err = os.Chmod(path, mode); err == nil {
		s.made, err = os.Lstat(path)
	}
	if err != nil {
		return nil, errors.Join(err, ul.Close(), os.Remove(path))
	}
	return s, nil
}

// clearStale removes a socket that nobody listens on. The error says why the path
// cannot be used.
func clearStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is there and is not a socket: name another path, or remove it", path)
	}
	c, err := net.DialTimeout("unix", path, folderWait)
	if err == nil {
		_ = c.Close()
	}
	switch {
	case err == nil, errors.Is(err, syscall.EAGAIN): // more connect than it accepts
		return fmt.Errorf("another process listens on %s: stop it, or name another path", path)
	case !errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%s is there, and it cannot be told whether a process listens on it: %w", path, err)
	}
	return os.Remove(path)
}

// enter takes a folder until leave is called, so that of two processes that find the
// same socket stale, one does not remove what the other has made in its place.
func enter(folder string) (leave func(), err error) {
	f, err := os.Open(folder)
	if err != nil {
		return nil, fmt.Errorf("the folder of the socket: %w", err)
	}
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for began := time.Now(); ; <-again.C {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return func() { _ = f.Close() }, nil
		case !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR), time.Since(began) > folderWait:
			return nil, errors.Join(fmt.Errorf("%s cannot be locked, in which sockets are made: %w", folder, err), f.Close())
		}
	}
}

// Close stops accepting and removes the socket, unless another stands in its place.
func (s *socket) Close() error {
	err := s.UnixListener.Close()
	s.once.Do(func() {
		leave, lerr := enter(filepath.Dir(s.path))
		if lerr != nil {
			err = errors.Join(err, lerr)
			return
		}
		defer leave()
		if now, lerr := os.Lstat(s.path); lerr == nil && os.SameFile(now, s.made) {
			err = errors.Join(err, os.Remove(s.path))
		}
	})
	return err
}

// Addr is the socket's address, unix:/path.
func (s *socket) Addr() net.Addr { return unixAddr{s.UnixListener.Addr()} }

type unixAddr struct{ net.Addr }

func (a unixAddr) String() string { return unixaddr.Of(a.Addr.String()) }
