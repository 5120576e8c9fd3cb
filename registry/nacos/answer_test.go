package nacos

import (
	"errors"
	"net/http"
	"testing"

	"github.com/weft-mesh/weft/pkg/fuzztest"
)

// FuzzAnswer: whatever Nacos answers is an error or gives instances that can be
// used, and costs memory in proportion to what came.
func FuzzAnswer(f *testing.F) {
	fuzztest.Seeds(f, "*.json")
	f.Add([]byte(`{"code":0,"data":[null,{"weight":-1},{"weight":1e300,"metadata":{"weft-id":"a","weft-port-grpc":"99999"}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var list []entry
		var s service
		var err error
		n := fuzztest.Allocated(func() {
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
