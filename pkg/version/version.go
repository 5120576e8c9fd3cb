// Package version is the version of the running program.
package version

import "runtime/debug"

// version is set by the linker in release builds.
var version string

// String is the version: a release's name, else the commit it was built from,
// else "dev".
func String() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				return s.Value[:12]
			}
		}
	}
	return "dev"
}
