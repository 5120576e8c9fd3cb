package servers

import (
	"context"
	"path/filepath"
)

// xdsPackages are what a client of Envoy's protocols in Python is made of.
var xdsPackages = []string{"xds-protos==1.85.0", "grpcio==1.85.3", "protobuf==7.36.2", "typing_extensions==4.16.0"}

// PythonXDS gives a Python that has the package xds-protos, from PyPI, and gRPC. It
// is installed once, into the cache.
func PythonXDS(ctx context.Context, progress func(string)) (python string, err error) {
	dir, err := once("python-xds-protos-1.85.0", progress, func(dir string) error {
		if err := need("python3", "python3-venv"); err != nil {
			return err
		}
		if err := run(ctx, dir, "python3", "-m", "venv", "."); err != nil {
			return err
		}
		return run(ctx, dir, filepath.Join("bin", "python"), append([]string{"-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"}, xdsPackages...)...)
	})
	return filepath.Join(dir, "bin", "python"), err
}
