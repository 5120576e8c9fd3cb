package nacos

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/pkg/fuzztest"
	"github.com/weft-mesh/weft/registry"
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
		for i, e := range endpointsOf(list) {
			if host, port, err := net.SplitHostPort(e.Addr); err != nil || host == "" || port == "0" || e.Weight <= 0 || e.Weight > maxWeight {
				t.Errorf("endpoint %d is %+v: %v", i, e, err)
			}
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

// TestNotNacos3: what has not the paths that are asked for, as Nacos 2, is told from
// a Nacos that has not the service.
func TestNotNacos3(t *testing.T) {
	for _, body := range []string{`{"timestamp":"2026-01-01T00:00:00.000+00:00","status":404,"error":"Not Found","path":"/nacos/v3/admin/ns/service"}`, "404 page not found", ""} {
		err := decodeAnswer("/v3/admin/ns/service", http.StatusNotFound, []byte(body), nil)
		if err == nil || !strings.Contains(err.Error(), "is it Nacos 3") || hasCode(err, codeServiceMissing) {
			t.Errorf("%q: %v", body, err)
		}
	}
	if err := decodeAnswer("/v3/admin/ns/service", http.StatusNotFound, []byte(`{"code":21008,"message":"service not found"}`), nil); !hasCode(err, codeServiceMissing) {
		t.Errorf("without the service: %v", err)
	}
}

// TestAway: what stands between us and a Nacos that is gone refuses nobody.
func TestAway(t *testing.T) {
	over := make(chan struct{})
	defer close(over)
	for name, answer := range map[string]http.HandlerFunc{
		"that has lost Nacos": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) },
		"that speaks something else": func(w http.ResponseWriter, _ *http.Request) {
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n")
			<-over // nothing comes any more, and it is not closed
		},
	} {
		s := httptest.NewServer(answer)
		t.Cleanup(s.Close)
		n := openWith(t, Config{URL: s.URL, Credentials: administrator})
		if err := n.Reconcile(t.Context(), "x", nil); err == nil || errors.Is(err, registry.ErrRefused) {
			t.Errorf("behind a gateway %s: %v", name, err)
		}
	}
}
