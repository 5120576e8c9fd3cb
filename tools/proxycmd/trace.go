package proxycmd

import (
	"context"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/dataplane/proxy"
	"github.com/weft-mesh/weft/pkg/tracing"
)

// TraceFlag says where spans go.
type TraceFlag struct{ endpoint string }

// Add adds the flag to cmd.
func (f *TraceFlag) Add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.endpoint, "otlp-endpoint", Env("OTEL_EXPORTER_OTLP_ENDPOINT", ""), "URL of an OpenTelemetry collector (gRPC) that spans go to, such as http://127.0.0.1:4317; sampling by OTEL_TRACES_SAMPLER (OTEL_EXPORTER_OTLP_ENDPOINT)")
}

// flushTime bounds how long the last spans may take to be sent.
const flushTime = 2 * time.Second

// Set makes cfg's tracing, if the flag is set. The returned function sends what
// is left.
func (f *TraceFlag) Set(ctx context.Context, cfg *proxy.Config) (stop func(), err error) {
	if f.endpoint == "" {
		return func() {}, nil
	}
	instance := cfg.NodeID
	if instance == "" {
		if instance, err = os.Hostname(); err != nil {
			return nil, err
		}
	}
	p, err := tracing.NewProvider(ctx, f.endpoint, "weft-proxy", instance, cfg.Log)
	if err != nil {
		return nil, err
	}
	cfg.Tracing = p
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
		defer cancel()
		if err := p.Shutdown(ctx); err != nil {
			cfg.Log.Warn("the last spans were not sent", "error", err)
		}
	}, nil
}
