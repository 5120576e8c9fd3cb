package nacos

import (
	"context"
	"errors"
	"iter"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/resolver"

	"github.com/weft-mesh/weft/registry"
)

// look is what a watch gives.
type look struct {
	set []registry.Instance
	err error
}

// following is a resolver that follows what the test gives to looks.
type following struct {
	resolver.ClientConn
	looks chan look

	mu   sync.Mutex
	use  string // addresses in use
	said string // the last error
}

func (f *following) UpdateState(s resolver.State) error {
	var out []string
	for _, e := range s.Endpoints {
		out = append(out, strings.TrimSuffix(e.Addresses[0].Addr, ":7411"))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.use = strings.Join(out, " ")
	return nil
}

func (f *following) ReportError(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.said = err.Error()
}

// now gives what is in use and what was said, when all is quiet.
func (f *following) now() (use, said string) {
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.use, f.said
}

func follow(t *testing.T, c Choice) *following {
	t.Helper()
	f := &following{looks: make(chan look)}
	b := builder{choice: c, watch: func(ctx context.Context, _ string) iter.Seq2[[]registry.Instance, error] {
		return func(yield func([]registry.Instance, error) bool) {
			for {
				select {
				case l := <-f.looks:
					if !yield(l.set, l.err) {
						return
					}
				case <-ctx.Done():
					return
				}
			}
		}
	}}
	r, err := b.Build(resolver.Target{URL: url.URL{Scheme: Scheme, Path: "/weft"}}, f, resolver.BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return f
}

// proxies reads "a z1 ns1,ns2", "-b" (unhealthy).
func proxies(texts ...string) []registry.Instance {
	var out []registry.Instance
	for _, s := range texts {
		host, sick := strings.CutPrefix(s, "-")
		parts := append(strings.Fields(host), "", "")
		i := registry.Instance{ID: parts[0], Host: parts[0], Zone: parts[1], Healthy: !sick, Ports: map[string]uint32{"grpc": 7411}}
		if parts[2] != "" {
			i.Namespaces = strings.Split(parts[2], ",")
		}
		out = append(out, i)
	}
	return out
}

func (f *following) see(t *testing.T, set []registry.Instance, want string) {
	t.Helper()
	f.looks <- look{set: set}
	if use, _ := f.now(); use != want {
		t.Errorf("%+v: it uses %q, want %q", set, use, want)
	}
}

// TestChoice: healthy ones that serve the namespace, of the own zone while there
// is one.
func TestChoice(t *testing.T) {
	all := proxies("a z1", "b z2", "c z2 shop", "d z1 other", "-e z2")
	for _, c := range []struct {
		choice Choice
		want   string
	}{
		{Choice{}, "a b c d"},
		{Choice{Zone: "z2"}, "b c"},
		{Choice{Zone: "z3"}, "a b c d"},
		{Choice{Namespace: "shop"}, "a b c"},
		{Choice{Namespace: "shop", Zone: "z1"}, "a"},
	} {
		synctest.Test(t, func(t *testing.T) { follow(t, c.choice).see(t, all, c.want) })
	}
}

// TestEmptyIsDoubted: what a server says that was just started, or that lost its
// data, takes no address away that still works.
func TestEmptyIsDoubted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := follow(t, Choice{})
		f.see(t, proxies("a", "b", "c", "d"), "a b c d")
		f.see(t, nil, "a b c d")
		f.looks <- look{nil, errors.New("nacos is away")}
		f.see(t, proxies("-a", "-b", "-c", "-d"), "a b c d")
		// They turn healthy one by one; not all clients go to the first.
		f.see(t, proxies("a", "-b", "-c", "-d"), "a b c d")
		f.see(t, proxies("a", "-b", "c", "-d"), "a c")
		f.see(t, proxies("a", "b", "c", "d"), "a b c d")
		// One that dies is gone at once, and a new one is there at once.
		f.see(t, proxies("a", "b", "c", "-d"), "a b c")
		f.see(t, proxies("a", "b", "c", "e"), "a b c e")
		// Most die: believed when it lasts, without another look.
		f.see(t, proxies("e", "f"), "e f a b c")
		<-time.After(doubt - time.Second) // of the bubble
		f.see(t, proxies("e", "f", "g"), "e f g a b c")
		<-time.After(time.Second)
		if use, said := f.now(); use != "e f g" || said != "" {
			t.Errorf("after the doubt it uses %q and says %q", use, said)
		}
	})
}

// TestNobody: without an address the error says why.
func TestNobody(t *testing.T) {
	for _, c := range []struct {
		set  []registry.Instance
		want string
	}{
		{nil, "service weft has no instances: is it the name of a mesh"},
		{proxies("-a", "-b"), "none of the 2 instances of service weft is healthy"},
		{proxies("a z1 other"), "none of the 1 instances of service weft serves namespace shop"},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := follow(t, Choice{Namespace: "shop"})
			f.see(t, c.set, "")
			if _, said := f.now(); !strings.Contains(said, c.want) {
				t.Errorf("it says %q, want %q", said, c.want)
			}
		})
	}
}
