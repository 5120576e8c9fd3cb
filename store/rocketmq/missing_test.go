package rocketmq

import (
	"errors"
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
