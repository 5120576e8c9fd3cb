//go:build unix

package proxy

import (
	"os"
	"syscall"
)

// lockFile takes the file for this process; the lock ends with the process.
func lockFile(f *os.File) error {
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}
