package servers

import (
	"context"
	"errors"
	"path/filepath"
)

// Promtool is the path of Prometheus's promtool, of Debian's package. The package
// is unpacked into the cache, not installed: no service comes with it, and root
// is not needed.
func Promtool(ctx context.Context) (string, error) {
	dir, err := once("promtool-debian", func(string) {}, func(dir string) error {
		if err := errors.Join(need("apt-get", "apt"), need("dpkg", "dpkg")); err != nil {
			return errors.Join(errors.New("promtool is taken from Debian's package prometheus"), err)
		}
		if err := run(ctx, dir, "apt-get", "-qq", "download", "prometheus"); err != nil {
			return errors.Join(errors.New("promtool is taken from Debian's package prometheus; where apt knows no packages yet, apt-get update helps"), err)
		}
		debs, err := filepath.Glob(filepath.Join(dir, "prometheus_*.deb"))
		if err != nil || len(debs) != 1 {
			return errors.Join(errors.New("apt-get download brought no package prometheus"), err)
		}
		return run(ctx, dir, "dpkg", "-x", debs[0], ".")
	})
	return filepath.Join(dir, "usr", "bin", "promtool"), err
}
