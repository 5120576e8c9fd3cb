package e2e

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/tools/weft"
)

// outputs is what processes and commands have shown, beside what spilled looks at.
type outputs struct {
	*mesh
	pages map[string]string
	// used are the commands that were run.
	used []string
}

// run runs a command, which may fail.
func (o *outputs) run(args ...string) string {
	o.Helper()
	out, err := o.weft("", args...)
	o.pages["weft "+strings.Join(args, " ")] += fmt.Sprintln(out, err)
	o.used = append(o.used, strings.Join(args, " ")+" ")
	return out
}

// get notes a page.
func (o *outputs) get(url, authorization string) {
	o.Helper()
	req, err := http.NewRequestWithContext(o.ctx, http.MethodGet, url, nil)
	o.must(err)
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := http.DefaultClient.Do(req)
	o.must(err)
	b, err := io.ReadAll(resp.Body)
	o.must(errors.Join(err, resp.Body.Close()))
	o.pages[url] += fmt.Sprintln(resp.Header, string(b))
}

// put writes a file that has a secret.
func (o *outputs) put(name, what, content string) string {
	o.Helper()
	file := filepath.Join(o.dir, name)
	o.must(os.MkdirAll(filepath.Dir(file), 0o700))
	o.must(os.WriteFile(file, []byte(content+"\n"), 0o600))
	o.secrets[what] = content
	return file
}

// begins runs a process that may end by itself or serve.
func (o *outputs) begins(name, health string, args ...string) {
	o.Helper()
	p := o.process(&servers.Process{Name: name, Args: append([]string{o.weftPath()}, args...)})
	p.Ready = answers("http://" + health + "/livez")
	if err := p.Start(o.ctx); err != nil && o.ctx.Err() != nil {
		o.Fatal(err)
	}
}

// kafkaStores are EventStores of brokers that want SCRAM: one of which the proxies have
// the password and the control plane has a wrong one, one the other way round, and two
// whose credentials are never asked for: a certificate's key is none, as of one of
// RocketMQ's too, and it would be TLS.
func (o *outputs) kafkaStores() string {
	o.Helper()
	k, err := servers.StartKafka(o.ctx, servers.KafkaOptions{Users: map[string]string{}})
	o.must(err)
	o.Cleanup(func() {
		if err := k.Stop(); err != nil {
			o.Error(err)
		}
	})
	const user, password = "canary-kafka-user-64b0", "canary-kafka-password-2a97"
	o.must(k.SetUser(o.ctx, user, password))
	good := fmt.Sprintf("{access_key: {file: %s}, secret_key: {file: %s}}", o.put("kafka/user", "a user of Kafka", user), o.put("kafka/password", "a password of Kafka", password))
	bad := fmt.Sprintf("{access_key: {file: %s}, secret_key: {file: %s}}", o.put("kafka/stranger", "a stranger to Kafka", "canary-kafka-stranger-b3c8"), o.put("kafka/guess", "a guess of Kafka's password", "canary-kafka-guess-70de"))
	const notKey = "canary-kafka-key-9e15"
	pem := o.put("kafka/not.pem", "what is no key of Kafka's", "-----BEGIN PRIVATE KEY-----\n"+notKey+"\n-----END PRIVATE KEY-----")
	o.secrets["what is no key of Kafka's"] = notKey
	var all strings.Builder
	fmt.Fprintf(&all, "\napiVersion: weft/v1alpha1\nkind: EventStore\nmetadata: {namespace: NS, name: rocketmq-key}\nspec: {rocketmq: {name_servers: [%q], tls: {ca_file: %s, certificate_file: %[2]s, key_file: %[2]s}}}\n---", k.Brokers[0], pem)
	for name, more := range map[string]string{
		"kafka-proxy":   "sasl_mechanism: scram_sha_512, credentials: " + good + ", admin_credentials: " + bad,
		"kafka-control": "sasl_mechanism: scram_sha_512, credentials: " + bad + ", admin_credentials: " + good,
		"kafka-key":     "sasl_mechanism: plain, credentials: " + good + fmt.Sprintf(", tls: {ca_file: %s, certificate_file: %[1]s, key_file: %[1]s}", pem),
		"kafka-tls":     "sasl_mechanism: plain, credentials: " + good + ", tls: {}",
	} {
		fmt.Fprintf(&all, "\napiVersion: weft/v1alpha1\nkind: EventStore\nmetadata: {namespace: NS, name: %s}\nspec: {kafka: {brokers: [%q], %s}}\n---", name, k.Brokers[0], more)
		fmt.Fprintf(&all, "\napiVersion: weft/v1alpha1\nkind: Topic\nmetadata: {namespace: NS, name: on-%s}\nspec: {store: %[1]s, partitions: 1}\n---", name)
	}
	return all.String()
}

// kafkaIsTried waits until each plane's guess was refused, and what cannot be a
// connection was tried.
func (o *outputs) kafkaIsTried(status func() string) {
	o.Helper()
	o.await("Kafka's refusals", func() error {
		out := status()
		for _, of := range []string{"kafka-proxy", "kafka-control", "rocketmq-key"} {
			if !strings.Contains(out, of) {
				return errors.New(out)
			}
		}
		if strings.Count(out, "AccessDenied") < 2 {
			return errors.New(out)
		}
		return nil
	})
}

// TestSecretsInOutputs: of keys, tokens and passwords, good ones, wrong ones and files
// that are none, nothing is in what a mesh shows: what every command prints, answers of
// all listeners, metrics, debug pages, spans, audit records, snapshots, and what is
// looked through for every mesh: logs, etcd and the proxies' folders. Whose files they
// are, nobody else may read them.
func TestSecretsInOutputs(t *testing.T) {
	t.Parallel()
	collector, err := servers.StartOTelCollector(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := collector.Stop(); err != nil {
			t.Error(err)
		}
	})
	m := prepareMesh(t, servers.SharedEtcd(t))
	o := &outputs{mesh: m, pages: map[string]string{}}
	own := m.authority("mesh")
	control, node := own.issue("control", ""), own.issue("node", "")
	issuer := m.tokens()
	jwt := issuer.make(nil, nil, issuer.rs256(issuer.key))
	m.secrets["a token"], m.secrets["a token's signature"] = jwt, jwt[strings.LastIndexByte(jwt, '.')+1:]
	snapshotKey, snapshotPub := m.signingKey()

	// The control plane.
	const token = "canary-admin-token-1f6b"
	tokenFile := o.put("admin.token", "the admin's token", token)
	access := filepath.Join(m.dir, "access.yaml")
	m.must(os.WriteFile(access, fmt.Appendf(nil, "tokens: [{subject: ops, sha256: %x}]\njwt: [{issuer: 'https://sso', audiences: [weft], jwks_file: %s}]\nbindings: [{subjects: [ops], role: admin, namespaces: ['*']}]\n",
		sha256.Sum256([]byte(token)), issuer.file), 0o600))
	m.startControlPlane("--log-level", "debug", "--admin-cert", control.Cert, "--admin-key", control.Key, "--discovery-cert", control.Cert, "--discovery-key", control.Key, "--discovery-ca", own.file,
		"--admin-access", access, "--snapshot-key", snapshotKey)
	trusted := []string{"--server", m.admin, "--server-ca", own.file}
	m.adminFlags = append(trusted[2:], "--server-token-file", tokenFile)
	admin := func(args ...string) string {
		t.Helper()
		return o.run(append(append(args, trusted[:2]...), m.adminFlags...)...)
	}

	// A proxy that has secrets of every kind, whose target shows what it was shown.
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Shown", r.Header.Get("Authorization"))
		w.WriteHeader(http.StatusTeapot)
		_, _ = fmt.Fprint(w, r.Header)
	}))
	t.Cleanup(target.Close)
	o.put("push/"+m.ns+"/shown", "what a target is shown", "canary-push-secret-77d1")
	o.put("push/"+m.ns+"/broken", "what is no signing key", "canary-no-signing-key-5e20 whsec")
	o.put("push/"+m.ns+"/signed", "a signing key", "whsec_Y2FuYXJ5LXNpZ25pbmcta2V5LTQxN2EtNzdiMi0xYzVl")
	o.put("store/admin-user", "a store's admin", "canary-access-key-12bd")
	o.put("store/admin", "a store's admin's key", "canary-admin-key-4d4e")
	o.put("store/access", "a store's access key", "canary-access-key-90aa")
	o.put("store/proxy", "what is no key of a store", "canary-secret-key-31ce\ncanary-line")
	joinToken := filepath.Join(m.dir, "p1.token")
	admin("admin", "join-token", "create", "p1", "--token-file", joinToken)
	m.secrets["a join token"] = m.read(joinToken)
	key, identity := m.key("shop")
	p := m.proxy("p1", "--log-level", "debug", "--cert", node.Cert, "--key", node.Key, "--control-plane-ca", own.file, "--join-token-file", joinToken,
		"--push-secrets", filepath.Join(m.dir, "push"), "--push-allow", "127.0.0.0/8", "--otlp-endpoint", collector.Endpoint)
	push := func(name, more string) string {
		return subscriptionYAML(name, "orders", fmt.Sprintf("dead_letter_topic: dead, retry: {max_attempts: 1}, push: {url: '%s', %s}", target.URL, more))
	}
	resources := strings.ReplaceAll(onDisk+o.kafkaStores()+topicYAML("orders", "dead", "bench")+subscriptionYAML("pulled", "orders", "")+
		push("shown", "authorization: {secret: shown}")+push("broken", "signature: {secrets: [broken]}")+push("signed", "signature: {secrets: [signed]}")+
		strings.ReplaceAll(signedStore("127.0.0.1:1", filepath.Join(m.dir, "store")), "env: WEFT_TEST_ACCESS_KEY", "file: "+filepath.Join(m.dir, "store/access"))+
		policyYAML("shop, ann")+identity+fmt.Sprintf("---\napiVersion: weft/v1alpha1\nkind: Identity\nmetadata: {namespace: NS, name: sso}\nspec: {jwt: {issuer: 'https://sso', audiences: [weft], jwks: '%s'}}\n", m.read(issuer.file)),
		"namespace: NS,", "namespace: "+m.ns+",")
	file := filepath.Join(m.dir, "resources.yaml")
	m.must(os.WriteFile(file, []byte(resources), 0o600))
	admin("apply", "-f", file)
	client := []string{"-n", m.ns, "--proxy", p.grpc, "--proxy-ca", own.file}
	with := func(key string, args ...string) string {
		t.Helper()
		return o.run(append(append(args, client...), "--api-key-file", key)...)
	}
	m.await("publishing", func() error {
		out, err := m.weft("", append([]string{"publish", "orders", "--id", "e1", "--source", "/shop", "--api-key-file", key}, client...)...)
		return errors.Join(err, map[bool]error{true: errors.New(out)}[!strings.Contains(out, "kept at")])
	})

	o.kafkaIsTried(func() string { return admin("status", "-o", "json") })

	// What is no secret of anybody, or is one in the wrong place.
	wrongKey := o.put("wrong.key", "a wrong API key", m.read(key)+"0")
	twoKeys := o.put("two.key", "what is no API key", "canary-two keys-\nof-lines-20c7")
	jwtFile := o.put("jwt.key", "a token", jwt)
	forged := o.put("forged.key", "a token that is forged", jwt[:len(jwt)-8]+"AAAAAAAA")
	notPEM := o.put("not.pem", "what is no key", "-----BEGIN PRIVATE KEY-----\ncanary-not-a-key-66ab\n-----END PRIVATE KEY-----")
	m.secrets["what is no key"] = "canary-not-a-key-66ab"
	notYAML := o.put("not.yaml", "what is no access file", "tokens: [{subject: ops, sha256: canary-clear-token-8d8d}]")
	m.secrets["what is no access file"] = "canary-clear-token-8d8d"
	clear := filepath.Join(m.dir, "clear.yaml")
	m.must(os.WriteFile(clear, []byte(strings.ReplaceAll(identity, "sha256:", m.read(key))), 0o600))
	private := filepath.Join(m.dir, "private.yaml")
	m.must(os.WriteFile(private, []byte("apiVersion: weft/v1alpha1\nkind: Identity\nmetadata: {namespace: "+m.ns+", name: oct}\nspec: {jwt: {issuer: x, audiences: [x], jwks: '{\"keys\": [{\"kty\": \"oct\", \"k\": \"Y2FuYXJ5LW9jdA-4f4f\"}]}'}}\n"), 0o600))
	m.secrets["a key of an issuer"] = "Y2FuYXJ5LW9jdA-4f4f"
	for _, bad := range []string{clear, private, notPEM, notYAML, node.Key, joinToken, key} {
		admin("apply", "-f", bad)
		admin("diff", "-f", bad)
		o.run("schema", "check", bad)
		o.run("eval", "orders", "-f", bad)
	}
	for _, bad := range []string{wrongKey, twoKeys, forged, notPEM, tokenFile} {
		with(bad, "publish", "orders")
		o.run(append([]string{"status", "--server-token-file", bad}, trusted...)...)
	}
	o.run("status", "--server", m.admin, "--server-ca", own.file, "--server-cert", notPEM, "--server-key", notPEM)
	o.run("status", "--server", "127.0.0.1:1", "--server-token-file", tokenFile)
	for _, b := range [][]string{
		{"admin-key", "--admin-cert", control.Cert, "--admin-key", notPEM}, {"discovery-key", "--discovery-cert", control.Cert, "--discovery-key", notPEM},
		{"another-key", "--admin-cert", control.Cert, "--admin-key", node.Key}, {"snapshot-key", "--snapshot-key", notPEM}, {"access", "--admin-access", notYAML},
		{"etcd-user", "--etcd-user", "root", "--etcd-password-file", twoKeys}, {"etcd-url", "--etcd", "http://root:canary-in-url-a1a1@127.0.0.1:1"},
		{"nacos", "--nacos", "http://127.0.0.1:1/nacos", "--nacos-user", "nacos", "--nacos-password-file", twoKeys}, {"nacos-url", "--nacos", "http://root:canary-in-url-a1a1@127.0.0.1:1/nacos"},
	} {
		ops := port(t)
		o.begins("control-plane-"+b[0], ops, append([]string{"control-plane", "--log-level", "debug", "--etcd", m.etcd, "--etcd-prefix", m.prefix()[:len(m.ns)+1] + "-broken/", "--admin", port(t), "--discovery", port(t), "--ops", ops}, b[1:]...)...)
	}
	for _, b := range [][]string{
		{"key", "--cert", node.Cert, "--key", notPEM}, {"control-key", "--control-plane-ca", own.file, "--control-plane-cert", node.Cert, "--control-plane-key", notPEM},
		{"token", "--control-plane-ca", own.file, "--join-token-file", twoKeys}, {"otlp", "--otlp-endpoint", "http://root:canary-in-url-a1a1@127.0.0.1:1"},
		{"verify", "--snapshot-from", file, "--snapshot-verify-key", notPEM}, {"snapshot", "--snapshot-from", notYAML, "--snapshot-verify-key", snapshotPub},
	} {
		ops := port(t)
		o.begins("proxy-"+b[0], ops, append([]string{"proxy", "--log-level", "debug", "--control-plane", m.disco, "--data", filepath.Join(m.dir, b[0]), "--http", port(t), "--grpc", port(t), "--health", port(t), "--ops", ops}, b[1:]...)...)
	}
	m.secrets["a password in a URL"] = "canary-in-url-a1a1"
	ops := port(t)
	m.dataDirs = append(m.dataDirs, filepath.Join(m.dir, "up"))
	o.begins("up", ops, "up", "--log-level", "debug", "--data", filepath.Join(m.dir, "up"), "--admin", port(t), "--discovery", port(t), "--control-plane-ops", port(t), "--http", port(t), "--grpc", port(t), "--health", port(t), "--ops", ops,
		"--push-secrets", filepath.Join(m.dir, "push"))

	// Every command.
	m.await("the dead letters", func() error {
		if out := with(key, "dlq", "list", "--dead-letter-topic", "dead"); !strings.Contains(out, "shown") || !strings.Contains(out, "signed") {
			return errors.New(out)
		}
		return nil
	})
	with(key, "dlq", "show", "e1", "--dead-letter-topic", "dead")
	with(key, "dlq", "redrive", "--dead-letter-topic", "dead", "-s", "shown")
	with(jwtFile, "pull", "pulled")
	with(key, "settle", "pulled", "x")
	with(key, "publish", "orders", "--id", "e2")
	with(jwtFile, "subscribe", "pulled", "--max", "1")
	with(key, "request", "orders", "--timeout", "1s")
	with(key, "reply", "pulled", "--max", "-1")
	with(key, "bench", "bench", "--duration", "1s")
	with(key, "trace", "/shop", "e1")
	for _, s := range []string{"shown", "broken", "signed"} {
		with(key, "why", "/shop", "e1", s)
		admin("status", "subscription/"+m.ns+"/"+s)
	}
	o.run("eval", "orders", "-f", file, "-n", m.ns)
	o.run("schema", "check", file)
	o.run("apikey", "other", "-n", m.ns, "--key-file", key)
	for _, kind := range []string{"eventstores", "topics", "subscriptions", "identities", "accesspolicies"} {
		admin("get", kind, "-n", m.ns, "-o", "yaml")
	}
	snapshot := filepath.Join(m.dir, "mesh.snapshot")
	admin("export", "-n", m.ns)
	admin("snapshot", "-n", m.ns, "-o", snapshot)
	o.pages["the snapshot"] = m.read(snapshot)
	admin("delete", "subscription", "broken", "-n", m.ns)
	admin("history", "-o", "json")
	admin("rollback", "1")
	admin("diff", "1")
	for _, verb := range []string{"status", "pause", "resume", "rollback", "finish"} {
		admin("migrate", verb, "orders", "-n", m.ns)
	}
	admin("migrate", "orders", "--to", "kafka-proxy", "-n", m.ns)
	admin("migrate", "list", "-n", m.ns)
	admin("proxies", "list")
	admin("proxies", "declare-dead", "p1", "--yes", "--reason", "to try it")
	admin("proxies", "revive", "p1")
	admin("proxies", "forget", "p1", "--yes")
	admin("status", "p1")
	admin("status", "-o", "json")
	admin("wait", "--timeout", "1s")
	tokenID := strings.Fields(strings.SplitN(admin("admin", "join-token", "list"), "\n", 3)[1])[0]
	o.run("version")
	o.run("completion", "bash")

	// Every page.
	for _, base := range []string{p.ops, m.ops} {
		for _, path := range []string{"metrics", "readyz", "debug/config", "debug/pprof/", "debug/pprof/cmdline", "debug/pprof/goroutine?debug=2", "debug/pprof/heap?debug=1", "debug/pprof/allocs?debug=1"} {
			o.get("http://"+base+"/"+path, "Bearer "+m.read(key))
		}
	}
	shop := &http.Client{Transport: &http.Transport{TLSClientConfig: own.tls(node)}}
	t.Cleanup(shop.CloseIdleConnections)
	for _, authorization := range []string{"Bearer " + m.read(wrongKey), "Basic " + m.read(key), m.read(key), "Bearer " + m.read(forged), "Bearer " + jwt + "\t" + jwt, "Bearer " + token} {
		for _, topic := range []string{"orders", "none", "orders?key=" + m.read(key)[:20]} {
			code, body := m.post(shop, "https://"+p.http, topic, authorization, textEvent("e3", "x"))
			o.pages["publishing as "+fmt.Sprint(len(o.pages))] = fmt.Sprint(code, body)
		}
	}
	m.await("the spans", func() error {
		if !strings.Contains(string(collector.Output()), "shown") {
			return errors.New("there are none of the pushes")
		}
		return nil
	})
	o.pages["the spans"] = string(collector.Output())
	admin("admin", "join-token", "revoke", tokenID)
	admin("admin", "restore", "--reason", "to try it")
	admin("admin", "resync", "p1")
	admin("admin", "drain", "p1")

	all := &strings.Builder{}
	for page, content := range o.pages {
		all.WriteString(content)
		for what, secret := range m.secrets {
			if strings.Contains(content, secret) {
				t.Errorf("%s is in what is shown by %s:\n%.2000s", what, page, content)
			}
		}
	}
	// What is no secret is there, so that it would be found.
	for _, known := range []string{strings.Split(m.read(key), "_")[1], "http 418", filepath.Join(m.dir, "store"), tokenID, "goroutine ", "weft_proxy_", "weft_controlplane_", "unauthenticated"} {
		if !strings.Contains(all.String(), known) {
			t.Errorf("%s is nowhere", known)
		}
	}
	o.everyCommand(weft.Command(), "")
	for _, path := range append(m.dataDirs, snapshot, key, joinToken) {
		m.must(filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if name := d.Name(); name == "stores" || name == "etcd" || name == "etcd.log" {
				if d.IsDir() {
					return fs.SkipDir
				}
				return nil // made by others, in a folder that is nobody else's
			}
			info, err := d.Info()
			if err == nil && info.Mode().Perm()&0o077 != 0 {
				t.Errorf("others may use %s: %s", path, info.Mode())
			}
			return err
		}))
	}
}

// everyCommand fails the test where a command was not run.
func (o *outputs) everyCommand(cmd *cobra.Command, path string) {
	for _, c := range cmd.Commands() {
		name := path + c.Name() + " "
		processes := []string{"control-plane ", "proxy ", "up "} // begin otherwise
		if c.HasSubCommands() {
			o.everyCommand(c, name)
		} else if !slices.ContainsFunc(o.used, func(args string) bool { return strings.HasPrefix(args, name) }) && !slices.Contains(processes, name) {
			o.Errorf("weft %s was not run", name)
		}
	}
}
