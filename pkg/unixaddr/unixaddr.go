// Package unixaddr reads addresses of Unix sockets, "unix:/path", where else
// "host:port" stands: what listens and what connects read them alike.
package unixaddr

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
)

const scheme = "unix:"

// maxPath is the longest path, in bytes, that a system call takes (sun_path), without
// the 0 that ends it.
const maxPath = len(syscall.RawSockaddrUnix{}.Path) - 1

// Is reports whether addr is meant for a Unix socket.
func Is(addr string) bool { return strings.HasPrefix(addr, scheme) }

// Of is the address of the socket at path.
func Of(path string) string { return scheme + path }

// Path is the path of a socket, in its shortest form. The error is of an address that
// names none: a path that is not absolute, or longer than the system takes.
func Path(addr string) (string, error) {
	path, ok := strings.CutPrefix(addr, scheme)
	if !ok || !filepath.IsAbs(path) || strings.HasSuffix(path, "/") || strings.ContainsRune(path, 0) {
		return "", fmt.Errorf("%q does not name a Unix socket by its absolute path, such as unix:/run/weft/http.sock", addr)
	}
	if path = filepath.Clean(path); len(path) > maxPath {
		return "", fmt.Errorf("the path of a Unix socket has at most %d bytes, %s has %d: choose a shorter folder", maxPath, path, len(path))
	}
	return path, nil
}
