// Package fuzztest has what fuzz targets share: seeds that are captures from real
// clients and servers, and how much memory a parser takes.
package fuzztest

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// Seeds adds the captures in testdata/captures whose names match pattern;
// testdata/captures/README.md says what each came from.
func Seeds(f *testing.F, pattern string) {
	f.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "captures", pattern))
	if err != nil || len(files) == 0 {
		f.Fatalf("captures %s: %v, %v", pattern, files, err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
}

// Allocated is how many bytes do allocates. Nothing else may run beside it.
func Allocated(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}
