package listener

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// tcpCloseWait is the state of a connection whose other side has closed (net/tcp_states.h).
const tcpCloseWait = 8

// gone reports whether who connected has given up by now: a handshake with nobody costs
// nearly as much as one with somebody.
func gone(c net.Conn) bool {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	var state uint8
	_ = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil { //nolint:gosec // a file descriptor
			state = info.State
		}
	})
	return state == tcpCloseWait
}
