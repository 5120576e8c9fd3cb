package discovery

import (
	"context"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/weft-mesh/weft/controlplane/jointoken"
	"github.com/weft-mesh/weft/pkg/fault"
)

// judgeEvery is how often the token of an open stream is looked at for its end.
const judgeEvery = time.Second

type credentialKey struct{}

// Join lets calls in: with a certificate, which the listener has verified, or
// with a join token ("authorization: Bearer weftjoin_…"), not both; over TLS one of
// them is needed. A stream that came with a token ends when the token does.
func Join(tokens *jointoken.Tokens) []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ChainStreamInterceptor(joinStream(tokens)),
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			ctx, _, _, err := join(ctx, tokens)
			if err != nil {
				return nil, err
			}
			return next(ctx, req)
		})}
}

// join gives a context that has what the caller's join token says, the token, and what is
// closed when it is to be looked at again; the context as it is and no token for a caller
// that has shown none and needs none.
func join(ctx context.Context, tokens *jointoken.Tokens) (_ context.Context, text string, changed <-chan struct{}, err error) {
	overTLS, certificate := false, false
	if p, ok := peer.FromContext(ctx); ok {
		info, ok := p.AuthInfo.(credentials.TLSInfo)
		overTLS, certificate = ok, ok && len(info.State.PeerCertificates) > 0
	}
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	switch {
	case len(values) == 0 && overTLS && !certificate:
		return nil, "", nil, status.Error(codes.Unauthenticated, "a proxy joins with a certificate of the control plane's authority or with a join token")
	case len(values) == 0:
		return ctx, "", nil, nil
	case certificate:
		return nil, "", nil, status.Error(codes.Unauthenticated, "a certificate and a join token were shown; show one")
	}
	text, ok := strings.CutPrefix(values[0], "Bearer ")
	if !ok || len(values) > 1 {
		return nil, "", nil, status.Error(codes.Unauthenticated, "one authorization: Bearer <join token> is understood")
	}
	tok, changed, err := tokens.Check(text)
	if err != nil {
		return nil, "", nil, joinStatus(err)
	}
	c := credential{subject: "join token " + tok.ID, node: tok.NodeID}
	if len(tok.Namespaces) > 0 {
		c.namespaces = map[string]bool{}
		for _, ns := range tok.Namespaces {
			c.namespaces[ns] = true
		}
	}
	return context.WithValue(ctx, credentialKey{}, c), text, changed, nil
}

func joinStream(tokens *jointoken.Tokens) grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		ctx, text, changed, err := join(stream.Context(), tokens)
		if err != nil {
			return err
		}
		if text == "" {
			return next(srv, stream)
		}
		ctx, end := context.WithCancelCause(ctx)
		defer end(nil)
		go func() {
			tick := time.NewTicker(judgeEvery)
			defer tick.Stop()
			for {
				select {
				case <-changed:
				case <-tick.C:
				case <-ctx.Done():
					return
				}
				var err error
				if _, changed, err = tokens.Check(text); err != nil {
					end(err)
					return
				}
			}
		}()
		err = next(srv, joined{stream, ctx})
		if cause := context.Cause(ctx); cause != nil && fault.ClassOf(cause) == fault.Unauthenticated {
			return joinStatus(cause)
		}
		return err
	}
}

func joinStatus(err error) error {
	code := codes.Unauthenticated
	if fault.ClassOf(err) == fault.Unavailable {
		code = codes.Unavailable
	}
	return status.Error(code, fault.From(err).Msg)
}

// joined is a stream whose other end has a join token.
type joined struct {
	grpc.ServerStream
	ctx context.Context
}

func (j joined) Context() context.Context { return j.ctx }
