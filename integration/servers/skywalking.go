package servers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
)

// skywalkingVersion is the one that java/skywalking/pom.xml names.
const skywalkingVersion = "10.1.0"

// SkyWalking is one standalone OAP server of Apache SkyWalking, which keeps what it
// gets in memory.
type SkyWalking struct {
	*Process
	// Endpoint is where it takes OTLP over gRPC, "http://host:port".
	Endpoint string
	// query is the base of its Zipkin API, under which it keeps traces that come by
	// OTLP.
	query string
	dir   string
}

// StartSkyWalking starts a server and waits until it answers. progress is told about
// the download; it may be nil.
func StartSkyWalking(ctx context.Context, progress func(string)) (_ *SkyWalking, err error) {
	dist, err := javaDir(ctx, "skywalking", skywalkingVersion, progressOf(progress))
	if err != nil {
		return nil, err
	}
	cp, err := classPath(dist)
	if err != nil {
		return nil, err
	}
	if err := need("java", "openjdk-17-jdk-headless"); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "weft-skywalking-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	port, err := FreePort(1, 2)
	if err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, "conf")
	if err := skywalkingConfig(conf, port); err != nil {
		return nil, err
	}
	on := func(port int) string { return "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
	s := &SkyWalking{Endpoint: on(port + 1), query: on(port+2) + "/zipkin/api/v2", dir: dir}
	s.Process = &Process{Name: "SkyWalking OAP", Log: filepath.Join(dir, "oap.log"),
		Args: []string{"java", "-Duser.home=" + dir, "-Djava.io.tmpdir=" + dir, "-Xms128m", "-Xmx512m", "-XX:+UseSerialGC",
			"-cp", conf + ":" + cp, "org.apache.skywalking.oap.server.starter.OAPServerStartUp"},
		Ready: answers(s.query + "/services")}
	return s, s.Start(ctx)
}

// skywalkingConfig writes what the server reads: its distribution's settings are in
// none of the jars. Only what traces need is on.
func skywalkingConfig(conf string, port int) error {
	// Without this option of H2 the server does not find the indices that it made.
	const db = "jdbc:h2:mem:oap;DB_CLOSE_DELAY=-1;DATABASE_TO_UPPER=FALSE"
	at := func(port int) string { return fmt.Sprintf("restHost: 127.0.0.1, restPort: %d", port) }
	for file, lines := range map[string][]string{
		"application.yml": {
			"cluster: {selector: standalone, standalone: {}}",
			fmt.Sprintf("core: {selector: default, default: {role: Mixed, %s, restContextPath: /, gRPCHost: 127.0.0.1, gRPCPort: %d, downsampling: [Hour, Day], persistentPeriod: 1}}", at(port), port+1),
			"storage: {selector: h2, h2: {properties: {jdbcUrl: '" + db + "', dataSource.user: sa}, maxSizeOfBatchSql: 100, asyncBatchPersistentPoolSize: 1}}",
			"agent-analyzer: {selector: default, default: {traceSamplingPolicySettingsFile: sampling.yml}}",
			"log-analyzer: {selector: default, default: {lalFiles: '', malFiles: ''}}",
			"event-analyzer: {selector: default, default: {}}",
			"receiver-sharing-server: {selector: default, default: {authentication: ''}}",
			"receiver-zipkin: {selector: default, default: {searchableTracesTags: http.method, sampleRate: 10000, enableHttpCollector: false}}",
			"receiver-otel: {selector: default, default: {enabledHandlers: otlp-traces, enabledOtelMetricsRules: ''}}",
			"query: {selector: graphql, graphql: {enableLogTestTool: false}}",
			fmt.Sprintf("query-zipkin: {selector: default, default: {%s, restContextPath: /zipkin}}", at(port+2)),
			"configuration: {selector: none, none: {}}",
			"telemetry: {selector: none, none: {}}",
			"ai-pipeline: {selector: default, default: {uriRecognitionServerAddr: '', uriRecognitionServerPort: 17128}}",
			"alarm: {selector: default, default: {}}",
		},
		"log4j2.xml": {
			`<Configuration><Appenders><Console name="C"><PatternLayout pattern="%d %p %c %m%n"/></Console></Appenders>`,
			`<Loggers><Root level="INFO"><AppenderRef ref="C"/></Root></Loggers></Configuration>`,
		},
		"alarm-settings.yml":          {"rules: {}"},
		"endpoint-name-grouping.yml":  {"grouping: []"},
		"component-libraries.yml":     {"{}"},
		"service-apdex-threshold.yml": {"{}"},
		"gateways.yml":                {"{}"},
		"sampling.yml":                {"{}"},
		"oal/core.oal":                {""},
		"oal/disable.oal":             {""},
		"otel-rules/none.yaml":        {""},
		"openapi-definitions/none":    {""},
	} {
		file = filepath.Join(conf, file)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return err
		}
		if err := writeLines(file, lines...); err != nil {
			return err
		}
	}
	return nil
}

// Trace is the trace of an id (32 hexadecimal digits) as its query API gives it, in
// the JSON of Zipkin; nil while there is none.
func (s *SkyWalking) Trace(ctx context.Context, id string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.query+"/trace/"+id, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return nil, err
	case resp.StatusCode == http.StatusNotFound:
		return nil, nil
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("the trace of %s: %s: %s", id, resp.Status, b)
	}
	return b, nil
}

// Stop ends the server and removes what it wrote.
func (s *SkyWalking) Stop() error { return errors.Join(s.Kill(), os.RemoveAll(s.dir)) }
