// Command weft-proxy is a proxy alone, for sidecars.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/weft-mesh/weft/pkg/version"
	"github.com/weft-mesh/weft/tools/proxycmd"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	cmd := proxycmd.Command()
	cmd.Use = "weft-proxy"
	cmd.Version = version.String()
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	if err := cmd.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "weft-proxy:", err)
		stop()
		os.Exit(1)
	}
}
