//go:build !unix

package proxy

import "os"

// lockFile does nothing where there is no flock; that each proxy has a folder of
// its own is then the operator's care.
func lockFile(*os.File) error { return nil }
