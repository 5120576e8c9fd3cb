package nacos

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// seeds adds captures from real servers; testdata/captures/README.md says which.
func seeds(f *testing.F, pattern string) {
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

// allocated is how many bytes do allocates.
func allocated(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// FuzzAnswer: whatever Nacos answers is an error or gives instances that can be
// used, and costs memory in proportion to what came.
func FuzzAnswer(f *testing.F) {
	seeds(f, "*.json")
	f.Add([]byte(`{"code":0,"data":[null,{"weight":-1},{"weight":1e300,"metadata":{"weft-id":"a","weft-port-grpc":"99999"}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var list []entry
		var s service
		var err error
		n := allocated(func() {
			err = decodeAnswer("/list", http.StatusOK, b, &list)
			_ = decodeAnswer("/service", http.StatusOK, b, &s)
		})
		if n > 512*uint64(len(b))+256<<10 {
			t.Errorf("%d bytes for %d", n, len(b))
		}
		if refused := (*apiError)(nil); !errors.As(decodeAnswer("/list", http.StatusForbidden, b, &list), &refused) {
			t.Error("a refusal is taken for an answer")
		}
		if err != nil {
			return
		}
		for i := range list {
			in, ours := list[i].instance()
			if ours != (in.ID != "") || in.Weight > maxWeight {
				t.Errorf("%+v", in)
			}
			for name, port := range in.Ports {
				if port > 65535 {
					t.Errorf("port %s is %d", name, port)
				}
			}
		}
	})
}
