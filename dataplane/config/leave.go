package config

import (
	"context"
	"errors"
	"strconv"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"

	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"
)

// leaver is one who waits until this node has left the roster.
type leaver struct {
	ctx  context.Context
	done chan error // capacity 1
}

// Leave takes this node off the roster of those that may write, which it must not do any
// more. What is kept on disk is removed first, and nothing is kept from then on, so that a
// restart begins with what a control plane sends, which writes the node down before. It
// needs a control plane that is followed, and waits for one until ctx ends. Where it
// fails the node stays on the roster, and may have nothing to start from.
func (c *Client) Leave(ctx context.Context) error {
	l := leaver{ctx, make(chan error, 1)}
	select {
	case c.leaving <- l:
		return <-l.done
	case <-ctx.Done():
		return errors.New("no control plane is followed")
	}
}

// leave leaves over the connection of a stream that has been answered.
func (c *Client) leave(ctx context.Context, conn grpc.ClientConnInterface, rpc discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient) error {
	header, err := rpc.Header()
	if err != nil {
		return err
	}
	said := header.Get(entryHeader)
	if len(said) != 1 {
		return errors.New("the control plane does not know of proxies that leave")
	}
	entry, err := strconv.ParseInt(said[0], 10, 64)
	if err != nil {
		return err
	}
	c.left = true
	if err := c.disk.clear(); err != nil {
		return err
	}
	_, err = discoveryv1.NewMoveServiceClient(conn).Leave(ctx, &discoveryv1.LeaveRequest{NodeId: c.cfg.NodeID, Entry: entry})
	return err
}
