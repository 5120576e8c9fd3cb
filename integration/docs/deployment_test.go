package docs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/weft-mesh/weft/tools/proxycmd"
	"github.com/weft-mesh/weft/tools/weft"
)

// proxyFlags reads arguments as weft-proxy does.
func proxyFlags(args []string) (*pflag.FlagSet, error) {
	cmd := proxycmd.Command()
	err := cmd.ParseFlags(args)
	if err == nil && len(cmd.Flags().Args()) > 0 {
		err = fmt.Errorf("%q is no flag", cmd.Flags().Args())
	}
	return cmd.Flags(), err
}

// TestUnit: systemd takes the unit as it is, and what it says of the proxy is so.
func TestUnit(t *testing.T) {
	b, err := os.ReadFile("../../examples/systemd/weft-proxy.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range wrongUnit(string(b)) {
		t.Error(problem)
	}
	for old, now := range map[string]string{"--on-demand": "--on-demanded", "Type=notify": "Type=simple", "TimeoutStopSec=40s": "TimeoutStopSec=20s",
		"RuntimeDirectory=weft\n": "RuntimeDirectory=other\n", "StateDirectory=weft-proxy": "StateDirectory=weft", "GOMEMLIMIT=200MiB": "GOMEMLIMIT=300MiB"} {
		changed := strings.Replace(string(b), old, now, 1)
		if changed == string(b) || len(wrongUnit(changed)) == 0 {
			t.Errorf("nothing is wrong with %s", now)
		}
	}
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Log("systemd-analyze is not here: the unit was only read")
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "weft-proxy.service")
	if err := os.WriteFile(file, bytes.ReplaceAll(b, []byte("/usr/local/bin/weft-proxy"), []byte(self)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", file).CombinedOutput(); err != nil || bytes.Contains(out, []byte(file)) {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// wrongUnit lists what is wrong with a unit of a proxy.
func wrongUnit(unit string) (problems []string) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	keys := map[string]string{}
	for line := range strings.Lines(strings.ReplaceAll(unit, "\\\n", " ")) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(k, "#") {
			keys[k] = v
		}
	}
	command := strings.Fields(keys["ExecStart"])
	if len(command) == 0 || filepath.Base(command[0]) != "weft-proxy" {
		bad("it runs %q", command)
		return problems
	}
	flags, err := proxyFlags(command[1:])
	if err != nil {
		bad("%v", err)
		return problems
	}
	value := func(name string) string { return flags.Lookup(name).Value.String() }
	if keys["Type"] != "notify" {
		bad("it does not wait until the proxy is ready")
	}
	if value("data") != "/var/lib/"+keys["StateDirectory"] {
		bad("--data is not the unit's StateDirectory")
	}
	for _, name := range []string{"http", "grpc"} {
		if path.Dir(value(name)) != "unix:/run/"+keys["RuntimeDirectory"] {
			bad("--%s is not in the unit's RuntimeDirectory", name)
		}
	}
	stop, err := time.ParseDuration(keys["TimeoutStopSec"])
	if drain, derr := time.ParseDuration(value("drain-time")); err != nil || derr != nil || stop <= drain {
		bad("TimeoutStopSec=%s is not longer than --drain-time", keys["TimeoutStopSec"])
	}
	heap, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(keys["Environment"], "GOMEMLIMIT="), "MiB"))
	if most, merr := strconv.Atoi(strings.TrimSuffix(keys["MemoryMax"], "M")); err != nil || merr != nil || heap >= most {
		bad("%s is not below MemoryMax=%s", keys["Environment"], keys["MemoryMax"])
	}
	return problems
}

// What stands in the manifests; a field that is not here is not known to the test, and
// may be misspelled.
type (
	labels map[string]string
	object struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string
		Metadata   struct {
			Name   string
			Labels labels
		}
		Spec yaml.Node
	}
	named struct {
		name string
		service
	}
	selector struct {
		MatchLabels labels `yaml:"matchLabels"`
	}
	deployment struct { // and a StatefulSet
		Replicas            int
		ServiceName         string `yaml:"serviceName"`
		PodManagementPolicy string `yaml:"podManagementPolicy"`
		Strategy            struct {
			RollingUpdate struct {
				MaxSurge       int `yaml:"maxSurge"`
				MaxUnavailable int `yaml:"maxUnavailable"`
			} `yaml:"rollingUpdate"`
		}
		Selector selector
		Template struct {
			Metadata struct{ Labels labels }
			Spec     pod
		}
	}
	service struct {
		ClusterIP string `yaml:"clusterIP"`
		NotReady  bool   `yaml:"publishNotReadyAddresses"`
		Selector  labels
		Ports     []struct {
			Name       string
			Port       int
			TargetPort string `yaml:"targetPort"`
		}
	}
	budget struct {
		MaxUnavailable int `yaml:"maxUnavailable"`
		Selector       selector
	}
	pod struct {
		AutomountServiceAccountToken  *bool `yaml:"automountServiceAccountToken"`
		TerminationGracePeriodSeconds int   `yaml:"terminationGracePeriodSeconds"`
		SecurityContext               struct {
			RunAsNonRoot   bool              `yaml:"runAsNonRoot"`
			RunAsUser      int               `yaml:"runAsUser"`
			FSGroup        int               `yaml:"fsGroup"`
			SeccompProfile map[string]string `yaml:"seccompProfile"`
		} `yaml:"securityContext"`
		InitContainers []container `yaml:"initContainers"`
		Containers     []container
		Volumes        []struct {
			Name     string
			EmptyDir *struct{} `yaml:"emptyDir"`
			Secret   *struct {
				SecretName  string `yaml:"secretName"`
				DefaultMode int    `yaml:"defaultMode"`
			}
		}
	}
	container struct {
		Name, Image   string
		RestartPolicy string `yaml:"restartPolicy"`
		Args          []string
		Env           []struct {
			Name, Value string
			ValueFrom   struct {
				FieldRef struct {
					FieldPath string `yaml:"fieldPath"`
				} `yaml:"fieldRef"`
			} `yaml:"valueFrom"`
		}
		Ports []struct {
			Name          string
			ContainerPort int `yaml:"containerPort"`
		}
		Startup   probe `yaml:"startupProbe"`
		Readiness probe `yaml:"readinessProbe"`
		Liveness  probe `yaml:"livenessProbe"`
		Resources struct {
			Requests, Limits map[string]string
		}
		SecurityContext struct {
			AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
			ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
			Capabilities             struct{ Drop []string }
		} `yaml:"securityContext"`
		VolumeMounts []struct {
			Name      string
			MountPath string `yaml:"mountPath"`
			ReadOnly  bool   `yaml:"readOnly"`
		} `yaml:"volumeMounts"`
	}
	probe struct {
		HTTPGet          struct{ Path, Port string } `yaml:"httpGet"`
		TCPSocket        struct{ Port string }       `yaml:"tcpSocket"`
		PeriodSeconds    int                         `yaml:"periodSeconds"`
		FailureThreshold int                         `yaml:"failureThreshold"`
	}
)

// strictly decodes a node, and refuses what the type has not.
func strictly(n *yaml.Node, to any) error {
	b, err := yaml.Marshal(n)
	if err != nil {
		return err
	}
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	return d.Decode(to)
}

// TestKubernetes: the manifests have no field that is misspelled, and flags, ports,
// paths, times and memory in them fit each other and the program.
func TestKubernetes(t *testing.T) {
	for name, breaks := range map[string]map[string]string{
		"sidecar": {"--on-demand\n": "--on-demanded\n", "path: /readyz": "path: /ready", "--health=:7418": "--health=:7419", "port: health}\n          resources": "port: http}\n          resources",
			"terminationGracePeriodSeconds: 60": "terminationGracePeriodSeconds: 25", "200MiB": "300MiB", "{name: sockets, mountPath: /run/weft}": "{name: sockets, mountPath: /run/other}",
			"value: \"unix:/run/weft/grpc.sock\"": "value: \"unix:/run/weft/http.sock\"", "fsGroup": "fsgroup", "drop: [ALL]": "drop: []", "restartPolicy: Always": "restartPolicy: Never",
			"--data=/var/lib/weft-proxy": "--data=/data", "tls/tls.key": "keys/tls.key"},
		"gateway": {"--drain-grace=10s": "--drain-grace=3s", "--drain-time=45s": "--drain-time=60s", "targetPort: grpc": "targetPort: gprc", "--http=:7410": "--http=:7411", "value: 1600MiB": "value: 2600MiB",
			"--metrics=:7417": "--metrics=:7419", "selector: {app: weft-gateway}": "selector: {app: gateway}", "emptyDir: {}": "emptydir: {}", "--key=/etc/weft/clients/tls.key": "--key="},
		"control-plane": {"- control-plane\n": "- proxy\n", "--health=:7428": "--health=:7429", "--metrics=:7427": "--metrics=127.0.0.1:7427", "https://etcd": "http://etcd", "--etcd-cert=/etc/weft/etcd/tls.crt": "--etcd-cert=/etc/etcd/tls.crt",
			"--discovery-ca": "--discovery-authority", "$(POD_NAME)": "$(POD_IP)", "serviceName: weft-replicas": "serviceName: weft", "clusterIP: None\n": "clusterIP: \"\"\n", "800MiB": "1000MiB", "targetPort: discovery": "targetPort: disco"},
	} {
		b, err := os.ReadFile("../../examples/kubernetes/" + name + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		for _, problem := range wrongManifest(b) {
			t.Errorf("%s.yaml: %s", name, problem)
		}
		for old, now := range breaks {
			changed := strings.Replace(string(b), old, now, 1)
			if changed == string(b) || len(wrongManifest([]byte(changed))) == 0 {
				t.Errorf("%s.yaml: nothing is wrong with %q", name, now)
			}
		}
	}
}

// wrongManifest lists what is wrong with the objects of a file.
func wrongManifest(b []byte) (problems []string) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	var pods []deployment
	var services []named
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	for {
		var o object
		err := d.Decode(&o)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return append(problems, err.Error())
		}
		var spec any
		switch o.APIVersion + " " + o.Kind {
		case "apps/v1 Deployment", "apps/v1 StatefulSet":
			spec = &deployment{}
		case "v1 Service":
			spec = &service{}
		case "policy/v1 PodDisruptionBudget":
			spec = &budget{}
		default:
			bad("%s of %s is not known to the test", o.Kind, o.APIVersion)
			continue
		}
		if err := strictly(&o.Spec, spec); err != nil {
			return append(problems, err.Error())
		}
		switch s := spec.(type) {
		case *deployment:
			pods = append(pods, *s)
			if !maps.Equal(s.Selector.MatchLabels, s.Template.Metadata.Labels) {
				bad("%s selects other pods than its own", o.Metadata.Name)
			}
			if (o.Kind == "StatefulSet") != (s.ServiceName != "") {
				bad("pods of %s have no names of their own, or such that nobody needs", o.Metadata.Name)
			}
		case *service:
			services = append(services, named{o.Metadata.Name, *s})
		case *budget:
			if len(pods) != 1 || !maps.Equal(s.Selector.MatchLabels, pods[0].Template.Metadata.Labels) {
				bad("the budget is of no pods")
			}
		}
	}
	if len(pods) != 1 {
		return append(problems, "there is not one Deployment or StatefulSet")
	}
	if of := pods[0].ServiceName; of != "" && !slices.ContainsFunc(services, func(s named) bool { return s.name == of && s.ClusterIP == "None" && s.NotReady }) {
		bad("there is no Service %s for the names of pods", of)
	}
	p := pods[0].Template.Spec
	problems = append(problems, p.wrong()...)
	for _, s := range services {
		if !maps.Equal(s.Selector, pods[0].Template.Metadata.Labels) {
			bad("the Service selects other pods")
		}
		for _, port := range s.Ports {
			if !slices.ContainsFunc(p.Containers, func(c container) bool { return c.port(port.TargetPort) == port.Port }) {
				bad("the Service's port %s is none of the pods", port.Name)
			}
		}
	}
	return problems
}

// port is the number of a port, 0 where there is none of the name.
func (c container) port(name string) int {
	for _, p := range c.Ports {
		if p.Name == name {
			return p.ContainerPort
		}
	}
	return 0
}

// mounted is the volume that a file is in.
func (c container) mounted(file string) (volume string, readOnly bool) {
	for _, m := range c.VolumeMounts {
		if file == m.MountPath || strings.HasPrefix(file, m.MountPath+"/") {
			return m.Name, m.ReadOnly
		}
	}
	return "", false
}

// wrong lists what is wrong with a pod.
func (p pod) wrong() (problems []string) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	s := p.SecurityContext
	if !s.RunAsNonRoot || s.RunAsUser == 0 || s.FSGroup == 0 || s.SeccompProfile["type"] != "RuntimeDefault" || p.AutomountServiceAccountToken == nil || *p.AutomountServiceAccountToken {
		bad("the pod may more than it needs: %+v", s)
	}
	used := map[string]bool{}
	proxies := 0
	all := slices.Concat(p.InitContainers, p.Containers)
	for _, c := range all {
		for _, m := range c.VolumeMounts {
			used[m.Name] = true
		}
		switch c.Name {
		case "weft-proxy":
			proxies++
			problems = append(problems, c.wrongProxy(p, all)...)
		case "weft-control-plane":
			proxies++
			problems = append(problems, c.wrongControlPlane()...)
		}
	}
	for _, c := range p.InitContainers {
		if c.RestartPolicy != "Always" {
			bad("%s is no sidecar: it is to end before the application starts", c.Name)
		}
	}
	for _, v := range p.Volumes {
		if !used[v.Name] || (v.EmptyDir == nil) == (v.Secret == nil) {
			bad("the volume %s is used by nobody, or is not of one kind", v.Name)
		}
		delete(used, v.Name)
	}
	if len(used) > 0 || proxies != 1 {
		bad("there are %d containers of the mesh; volumes that do not exist: %v", proxies, used)
	}
	return problems
}

// wrongProxy lists what is wrong with the container of a proxy.
func (c container) wrongProxy(p pod, all []container) (problems []string) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	flags, err := proxyFlags(c.Args)
	if err != nil {
		return []string{err.Error()}
	}
	value := func(name string) string { return flags.Lookup(name).Value.String() }
	s := c.SecurityContext
	if s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || !s.ReadOnlyRootFilesystem || !slices.Equal(s.Capabilities.Drop, []string{"ALL"}) {
		bad("the proxy may more than it needs")
	}
	// Ports and paths.
	for _, name := range []string{"http", "grpc", "health", "metrics"} {
		if file, ok := strings.CutPrefix(value(name), "unix:"); ok {
			volume, readOnly := c.mounted(file)
			if !slices.ContainsFunc(all, func(other container) bool {
				v, _ := other.mounted(file)
				return other.Name != c.Name && v == volume && volume != "" && !readOnly
			}) {
				bad("--%s=%s is in no volume that another container has", name, value(name))
			}
			continue
		}
		if _, port, err := net.SplitHostPort(value(name)); err != nil || port != strconv.Itoa(c.port(name)) {
			bad("--%s=%s is not the container's port %d", name, value(name), c.port(name))
		}
		if (name == "http" || name == "grpc") && (value("cert") == "" || value("key") == "") {
			bad("--%s=%s has no TLS", name, value(name))
		}
	}
	for _, other := range all {
		for _, e := range other.Env {
			if e.Name == "WEFT_PROXY" && e.Value != value("grpc") {
				bad("%s looks for the proxy at %s", other.Name, e.Value)
			}
		}
	}
	problems = append(problems, c.wrongProbes()...)
	// Files.
	if volume, readOnly := c.mounted(value("data")); volume == "" || readOnly {
		bad("--data=%s cannot be written to", value("data"))
	}
	problems = append(problems, c.wrongFiles(flags)...)
	// Times.
	grace, err := time.ParseDuration(value("drain-grace"))
	drain, derr := time.ParseDuration(value("drain-time"))
	if err != nil || derr != nil || time.Duration(p.TerminationGracePeriodSeconds)*time.Second < drain+10*time.Second {
		bad("terminationGracePeriodSeconds leaves no 10 s beyond --drain-time=%s", drain)
	}
	noticed := time.Duration(c.Readiness.PeriodSeconds*max(1, c.Readiness.FailureThreshold)) * time.Second
	if c.port("grpc") != 0 && grace < noticed+time.Second {
		bad("--drain-grace=%s is over before readiness is seen to fail, after %s", grace, noticed)
	}
	return append(problems, c.wrongVariables(flags)...)
}

// wrongControlPlane lists what is wrong with the container of a control plane.
func (c container) wrongControlPlane() (problems []string) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	cmd, rest, err := weft.Command().Find(c.Args)
	if err != nil || cmd.Name() != "control-plane" {
		return []string{fmt.Sprintf("%v runs no control plane: %v", c.Args, err)}
	}
	if err := cmd.ParseFlags(rest); err != nil {
		return []string{err.Error()}
	}
	flags := cmd.Flags()
	value := func(name string) string { return flags.Lookup(name).Value.String() }
	for _, name := range []string{"admin", "discovery", "health", "metrics"} {
		if host, port, err := net.SplitHostPort(value(name)); err != nil || host != "" || port != strconv.Itoa(c.port(name)) {
			bad("--%s=%s is not the container's port %d", name, value(name), c.port(name))
		}
	}
	for _, of := range []string{"admin", "discovery", "etcd"} {
		for _, file := range []string{"cert", "key", "ca"} {
			if value(of+"-"+file) == "" {
				bad("--%s-%s is missing", of, file)
			}
		}
	}
	if !strings.HasPrefix(value("etcd"), "[https://") {
		bad("etcd is at %s, without TLS", value("etcd"))
	}
	problems = append(problems, c.wrongProbes()...)
	problems = append(problems, c.wrongFiles(flags)...)
	return append(problems, c.wrongVariables(flags)...)
}

// wrongProbes lists what is wrong with how it is asked how it is.
func (c container) wrongProbes() (problems []string) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	for _, pr := range []probe{c.Startup, c.Readiness} {
		if pr.HTTPGet.Path != "/readyz" || pr.HTTPGet.Port != "health" || pr.PeriodSeconds == 0 {
			bad("readiness is asked for at %+v", pr)
		}
	}
	if c.Liveness.TCPSocket.Port != "health" || c.Liveness.HTTPGet.Path != "" {
		bad("the liveness probe is %+v; what is not ready is not to be killed", c.Liveness)
	}
	return problems
}

// wrongFiles lists what flags name that is in no volume.
func (c container) wrongFiles(flags *pflag.FlagSet) (problems []string) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	flags.Visit(func(f *pflag.Flag) {
		if v := f.Value.String(); strings.HasPrefix(v, "/") {
			if volume, _ := c.mounted(v); volume == "" {
				bad("--%s=%s is in no volume", f.Name, v)
			}
		}
	})
	return problems
}

// wrongVariables lists what is wrong with the environment, and with what memory there is.
func (c container) wrongVariables(flags *pflag.FlagSet) (problems []string) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	limit := map[string]int{"Mi": 1, "Gi": 1024}[c.Resources.Limits["memory"][max(0, len(c.Resources.Limits["memory"])-2):]]
	most, _ := strconv.Atoi(strings.TrimRight(c.Resources.Limits["memory"], "MGi"))
	heap := 0
	for _, e := range c.Env {
		known := e.Name == "GOMEMLIMIT" || e.Name == "GOGC" || slices.ContainsFunc(c.Args, func(a string) bool { return strings.Contains(a, "$("+e.Name+")") })
		flags.VisitAll(func(f *pflag.Flag) { known = known || strings.Contains(f.Usage, "("+e.Name+")") })
		if !known {
			bad("nothing reads %s", e.Name)
		}
		if e.Name == "GOMEMLIMIT" {
			heap, _ = strconv.Atoi(strings.TrimSuffix(e.Value, "MiB"))
		}
	}
	if heap == 0 || heap > most*limit*9/10 {
		bad("GOMEMLIMIT of %d MiB is not a tenth below the limit of %d", heap, most*limit)
	}
	return problems
}
