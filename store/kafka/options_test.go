package kafka

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/pkg/fault"
)

// TestOptions: what a store cannot be opened with is said at once, and what is
// formatted shows no secret.
func TestOptions(t *testing.T) {
	missing := errors.New("no such file")
	for name, o := range map[string]Options{
		"no broker":      {},
		"mechanism":      {Brokers: []string{"a:1"}, Mechanism: "GSSAPI", Credentials: func() (Credentials, error) { return Credentials{}, nil }},
		"no credentials": {Brokers: []string{"a:1"}, Mechanism: Plain},
	} {
		if err := o.check(); err == nil || fault.ClassOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	o := Options{Brokers: []string{"a:1"}, Mechanism: ScramSHA512, Credentials: func() (Credentials, error) { return Credentials{}, missing }}
	if err := o.check(); !errors.Is(err, missing) {
		t.Errorf("credentials that are not there: %v", err)
	}
	if s := fmt.Sprintf("%v %+v %#v", Credentials{"u5er", "pa55"}, Credentials{"u5er", "pa55"}, Credentials{"u5er", "pa55"}); strings.Contains(s, "u5er") || strings.Contains(s, "pa55") {
		t.Errorf("it shows %s", s)
	}
}
