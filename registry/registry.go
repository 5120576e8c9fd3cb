// Package registry is the contract for telling who is running: the control
// plane announces proxies, clients look them up. Nacos is one implementation,
// an in-memory one serves one machine and tests.
//
// The registry says who is there. It never carries configuration, and the
// event path works while it is down.
package registry

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"strconv"
	"strings"
)

// ErrRefused is in the chain of an error that says that the registry was reached
// and takes our credentials for wrong, or for too little.
var ErrRefused = errors.New("the registry refuses us")

// Instance is one running process of a service.
type Instance struct {
	// ID is the node id, unique within the service.
	ID string
	// Host under which clients and the registry's health check reach it.
	Host string
	// Ports by protocol: "grpc" (the instance's main port), "http", "health".
	// Those of grpc and health are needed.
	Ports map[string]uint32
	// Zone, Weight (1 to 10,000) and Version, for clients that choose.
	Zone    string
	Weight  uint32
	Version string
	// Namespaces it serves; empty means all.
	Namespaces []string
	// Healthy is what the registry's own check saw last, false too where an
	// operator disabled it there. Only read.
	Healthy bool
}

// Registry is safe for concurrent use.
type Registry interface {
	// Reconcile makes the service consist of exactly these instances and
	// returns once that was read back; it writes only what differs. It is
	// called by one elected process, again and again. Instances that are gone
	// are removed, but for the last one of a service, which is only ever
	// replaced. One that cannot be registered (a port is missing, or
	// another of them is at its address) is an error, and holds up no other.
	Reconcile(ctx context.Context, service string, want []Instance) error

	// Watch yields the full set of a service's instances, healthy or not,
	// first as it is and then on each change; sets in between may be skipped.
	// With a non-nil error the set is the last known one, which stays in
	// force, and the watch goes on. It ends when ctx does or the loop breaks.
	Watch(ctx context.Context, service string) iter.Seq2[[]Instance, error]

	// Close ends every watch and leaves no goroutine.
	Close(ctx context.Context) error
}

// Check says what is wrong with i, if anything.
func (i *Instance) Check() error {
	switch {
	case i.ID == "":
		return errors.New("an instance has no id")
	case i.Host == "" || len(i.Host) > 253 || strings.ContainsAny(i.Host, " /?#@"):
		return fmt.Errorf("instance %q: %q is not a host", i.ID, i.Host)
	case i.Ports["grpc"] == 0 || i.Ports["health"] == 0:
		return fmt.Errorf("instance %q has no port grpc, or none for health", i.ID)
	case i.Weight > 10000:
		return fmt.Errorf("instance %q: the weight %d is above 10,000", i.ID, i.Weight)
	}
	for name, p := range i.Ports {
		if p > 65535 {
			return fmt.Errorf("instance %q: port %s is %d", i.ID, name, p)
		}
	}
	return nil
}

// Address is where clients reach it over gRPC: "host:port".
func (i *Instance) Address() string {
	return net.JoinHostPort(i.Host, strconv.FormatUint(uint64(i.Ports["grpc"]), 10))
}

// Registrable gives those of want that can be registered, by id, and what is
// wrong with the others.
func Registrable(want []Instance) (map[string]Instance, error) {
	out, at := make(map[string]Instance, len(want)), map[string]string{}
	var wrong []error
	for _, i := range want {
		err := i.Check()
		if _, ok := out[i.ID]; ok && err == nil {
			err = fmt.Errorf("instance %q is there twice", i.ID)
		}
		if other, ok := at[i.Address()]; ok && err == nil {
			err = fmt.Errorf("instances %q and %q are both at %s", other, i.ID, i.Address())
		}
		if err != nil {
			wrong = append(wrong, err)
			continue
		}
		out[i.ID], at[i.Address()] = i, i.ID
	}
	return out, errors.Join(wrong...)
}
