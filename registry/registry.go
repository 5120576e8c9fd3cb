// Package registry is the contract for telling who is running: the control
// plane announces proxies, clients look them up. Nacos is one implementation,
// an in-memory one serves one machine and tests.
//
// The registry says who is there. It never carries configuration, and the
// event path works while it is down.
package registry

import (
	"context"
	"iter"
)

// Instance is one running process of a service.
type Instance struct {
	// ID is the node id, unique within the service.
	ID string
	// Host under which clients and the registry's health check reach it.
	Host string
	// Ports by protocol: "grpc" (the instance's main port), "http", "health".
	Ports map[string]uint32
	// Zone, Weight (1 to 10,000) and Version, for clients that choose.
	Zone    string
	Weight  uint32
	Version string
	// Namespaces it serves; empty means all.
	Namespaces []string
	// Healthy is what the registry's own check saw last. Only read.
	Healthy bool
}

// Registry is safe for concurrent use.
type Registry interface {
	// Reconcile makes the service consist of exactly these instances and
	// returns once that was read back; it writes only what differs. It is
	// called by one elected process, again and again. Instances that are gone
	// are removed, but for the last one of a service, which is only ever
	// replaced.
	Reconcile(ctx context.Context, service string, want []Instance) error

	// Watch yields the full set of a service's instances, healthy or not,
	// first as it is and then on each change; sets in between may be skipped.
	// With a non-nil error the set is the last known one, which stays in
	// force, and the watch goes on. It ends when ctx does or the loop breaks.
	Watch(ctx context.Context, service string) iter.Seq2[[]Instance, error]

	// Close ends every watch and leaves no goroutine.
	Close(ctx context.Context) error
}
