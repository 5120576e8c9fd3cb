package rocketmq

import (
	"errors"
	"slices"
	"testing"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store/rocketmq/remoting"
)

// TestMissing: a topic of which there was no route is gone only where it has none while
// all its brokers are there; one that has just come back, or leaves, takes no topic away.
func TestMissing(t *testing.T) {
	away := unavailable(errors.New("a broker is away"))
	gone := fault.New(fault.NotFound, "rocketmq", "unknown-topic", "no such topic")
	for name, tc := range map[string]struct {
		brokers []error // what is found at each look
		route   error   // the second answer
		want    error
	}{
		"it is gone":                  {[]error{nil, nil}, gone, gone},
		"its broker is away":          {[]error{away, away}, gone, away},
		"its broker has come back":    {[]error{nil, nil}, nil, nil},
		"its broker leaves meanwhile": {[]error{nil, away}, gone, away},
		"nobody answers any more":     {[]error{nil, nil}, away, away},
	} {
		looks, found := tc.brokers, &remoting.Command{}
		cmd, err := judgeMissing(func() error {
			err := looks[0]
			looks = looks[1:]
			return err
		}, func() (*remoting.Command, error) {
			if tc.route != nil {
				return nil, tc.route
			}
			return found, nil
		})
		if !errors.Is(err, tc.want) || (err == nil) != (cmd == found) {
			t.Errorf("%s: %v, %v, want %v", name, cmd, err, tc.want)
		}
	}
}

// TestMissed: a broker that is named and has no queue in a route is waited for, unless it
// was there before and after that.
func TestMissed(t *testing.T) {
	there, away := map[string]string{"a": "h:1", "b": "h:2"}, map[string]string{"a": "h:1"}
	for name, tc := range map[string]struct {
		before, after map[string]string
		brokers       map[string]string // of the route
		want          []string
	}{
		"it has some":           {there, there, there, nil},
		"it has none":           {there, there, away, nil},
		"it is away":            {away, away, away, []string{"b"}},
		"it has just come back": {away, there, away, []string{"b"}},
		"it leaves meanwhile":   {there, away, away, []string{"b"}},
	} {
		if got := missed([]string{"a", "b"}, &route{brokers: tc.brokers}, tc.before, tc.after); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q are waited for, want %q", name, got, tc.want)
		}
	}
}
