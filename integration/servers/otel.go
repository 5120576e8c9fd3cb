package servers

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// otelVersion is the one that golang/otelcol/go.mod.txt names.
const otelVersion = "0.165.0"

//go:embed golang/otelcol
var otelSource embed.FS

// OTelCollector is one OpenTelemetry collector, which writes down the spans that it
// gets.
type OTelCollector struct {
	*Process
	// Endpoint is where it takes OTLP over gRPC, "http://host:port".
	Endpoint string
	dir      string
}

// StartOTelCollector builds a collector, once, starts it and waits until it serves.
// It is a module of its own: it would bring its dependencies into this one. progress
// is told about the build; it may be nil.
func StartOTelCollector(ctx context.Context, progress func(string)) (_ *OTelCollector, err error) {
	files := map[string][]byte{}
	sum := sha256.New()
	for _, name := range []string{"main.go", "go.mod", "go.sum"} {
		if files[name], err = otelSource.ReadFile("golang/otelcol/" + name + ".txt"); err != nil {
			return nil, err
		}
		sum.Write(files[name])
	}
	built, err := once("otelcol-"+otelVersion+"-"+hex.EncodeToString(sum.Sum(nil)[:4]), progressOf(progress), func(dir string) error {
		src := filepath.Join(dir, "src")
		if err := os.Mkdir(src, 0o755); err != nil {
			return err
		}
		for name, b := range files {
			if err := os.WriteFile(filepath.Join(src, name), b, 0o600); err != nil {
				return err
			}
		}
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-mod=mod", "-ldflags", "-s -w", "-o", filepath.Join(dir, "otelcol"), ".")
		cmd.Dir = src
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go build otelcol: %w\n%s", err, out)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "weft-otelcol-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	config := filepath.Join(dir, "config.yaml")
	if err := writeLines(config, "receivers: {otlp: {protocols: {grpc: {endpoint: '"+addr+"'}}}}",
		"exporters: {debug: {verbosity: detailed}}",
		"service: {telemetry: {metrics: {level: none}}, pipelines: {traces: {receivers: [otlp], exporters: [debug]}}}"); err != nil {
		return nil, err
	}
	c := &OTelCollector{Endpoint: "http://" + addr, dir: dir, Process: &Process{Name: "OpenTelemetry collector", Log: filepath.Join(dir, "otelcol.log"),
		Args: []string{filepath.Join(built, "otelcol"), "--config", "file:" + config},
		Ready: func(_ context.Context, output []byte) error {
			if !strings.Contains(string(output), "Everything is ready") {
				return errors.New("it does not say that everything is ready")
			}
			return nil
		}}}
	return c, c.Start(ctx)
}

// Stop ends the collector and removes what it wrote.
func (c *OTelCollector) Stop() error { return errors.Join(c.Kill(), os.RemoveAll(c.dir)) }
