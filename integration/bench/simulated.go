package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/pkg/resource"
)

// follow is one simulated proxy: it acknowledges what it gets, decodes what is
// small, and tells synced its resume token once it has everything.
func (f *simulated) follow(ctx context.Context, node string, sessions tls.ClientSessionCache, space, token string, synced chan<- string) error {
	config := f.server.tls.client.Clone()
	config.ClientSessionCache = sessions
	conn, err := grpc.NewClient(f.server.disco, grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithReadBufferSize(8<<10), grpc.WithWriteBufferSize(4<<10),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: time.Minute}),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.ForceCodecV2(lazyCodec{encoding.GetCodecV2(protocodec.Name)}), grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return err
	}
	defer conn.Close()
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "weft-resume", token)
	}
	st, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName)
	if err != nil {
		return err
	}
	first, err := firstRequest(node, space)
	if err != nil {
		return err
	}
	if err := st.SendMsg(first); err != nil {
		return err
	}
	began := false
	for {
		var raw []byte
		if err := st.RecvMsg(&raw); err != nil {
			return err
		}
		resp, err := readResponse(raw)
		if err != nil {
			return err
		}
		if err := st.SendMsg(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resource.TypeURL, ResponseNonce: resp.nonce}); err != nil {
			return err
		}
		if f.log != nil && began {
			f.log.add(node, resp.manifest.GetRevision())
		}
		if resp.label != "" {
			select {
			case f.acked <- acknowledgement{resp.label, time.Now()}:
			case <-ctx.Done():
				return errors.New("over")
			}
		}
		// A server without manifests sends everything in one response.
		if !began && (resp.manifest != nil || f.server.name != "weft") {
			began = true
			synced <- tokenOf(resp.manifest, first.ResourceNamesSubscribe)
		}
	}
}

func firstRequest(node, space string) (*discoveryv3.DeltaDiscoveryRequest, error) {
	info := &discoveryv1.NodeInfo{Manifest: true, Capabilities: resource.AllFeatures()}
	names := []string{"*"}
	if space != "" {
		info.Namespaces, names = []string{space}, []string{"*/" + space + "/*"}
	}
	b, err := protojson.Marshal(info)
	if err != nil {
		return nil, err
	}
	meta := &structpb.Struct{}
	if err := protojson.Unmarshal(b, meta); err != nil {
		return nil, err
	}
	return &discoveryv3.DeltaDiscoveryRequest{TypeUrl: resource.TypeURL, ResourceNamesSubscribe: names,
		Node: &corev3.Node{Id: node, Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"weft": structpb.NewStructValue(meta)}}}}, nil
}

func tokenOf(m *configv1.Manifest, scope []string) string {
	b, err := proto.Marshal(&discoveryv1.ResumeToken{Lineage: m.GetLineage(), Revision: m.GetRevision(), Scope: scope, Digests: m.GetKinds()})
	if err != nil {
		panic(err) // of what was just unmarshalled
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// response is what a simulated proxy reads of one.
type response struct {
	nonce    string
	label    string // v of the only resource beside the manifest
	manifest *configv1.Manifest
}

// readResponse reads the top of a DeltaDiscoveryResponse; of its resources the last, where
// a manifest is, and the first, where there is one alone.
func readResponse(b []byte) (response, error) {
	var out response
	var all [][]byte
	for len(b) > 0 {
		n, typ, l := protowire.ConsumeTag(b)
		if l < 0 {
			return out, protowire.ParseError(l)
		}
		b = b[l:]
		if typ != protowire.BytesType {
			return out, fmt.Errorf("field %d is not of bytes", n)
		}
		v, l := protowire.ConsumeBytes(b)
		if l < 0 {
			return out, protowire.ParseError(l)
		}
		b = b[l:]
		switch n {
		case 2:
			all = append(all, v)
		case 5:
			out.nonce = string(v)
		}
	}
	if len(all) == 0 {
		return out, nil
	}
	decode := func(b []byte) (*configv1.Resource, error) {
		var r discoveryv3.Resource
		one := &configv1.Resource{}
		if err := proto.Unmarshal(b, &r); err != nil {
			return nil, err
		}
		return one, proto.Unmarshal(r.GetResource().GetValue(), one)
	}
	last, err := decode(all[len(all)-1])
	if err != nil {
		return out, err
	}
	if out.manifest = last.GetManifest(); out.manifest != nil {
		all = all[:len(all)-1]
	}
	if len(all) == 1 {
		one, err := decode(all[0])
		if err != nil {
			return out, err
		}
		out.label = one.GetMetadata().GetLabels()["v"]
	}
	return out, nil
}

// lazyCodec gives the bytes of messages that are received.
type lazyCodec struct{ encoding.CodecV2 }

func (c lazyCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if raw, ok := v.(*[]byte); ok {
		*raw = data.Materialize()
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}

// fleetTLS are certificates for a server and for the fleet.
type fleetTLS struct {
	ca, serverCert, serverKey string // files
	client                    *tls.Config
	server                    *tls.Config
}

func newFleetTLS(dir string) (*fleetTLS, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	template := func(name string, n int64) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(n), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	}
	root := template("authority", 1)
	root.IsCA, root.BasicConstraintsValid, root.KeyUsage = true, true, x509.KeyUsageCertSign
	var rootKey *ecdsa.PrivateKey
	issue := func(t *x509.Certificate, name string) (tls.Certificate, error) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return tls.Certificate{}, err
		}
		signer := rootKey
		if signer == nil {
			signer, rootKey = key, key
		}
		der, err := x509.CreateCertificate(rand.Reader, t, root, &key.PublicKey, signer)
		if err != nil {
			return tls.Certificate{}, err
		}
		pk, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return tls.Certificate{}, err
		}
		cert, private := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk})
		err = errors.Join(os.WriteFile(filepath.Join(dir, name+".crt"), cert, 0o600), os.WriteFile(filepath.Join(dir, name+".key"), private, 0o600))
		if err != nil {
			return tls.Certificate{}, err
		}
		return tls.X509KeyPair(cert, private)
	}
	ca, err := issue(root, "ca")
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(ca.Certificate[0])
	if err != nil {
		return nil, err
	}
	pool.AddCert(parsed)
	server, err := issue(template("server", 2), "server")
	if err != nil {
		return nil, err
	}
	client, err := issue(template("fleet", 3), "fleet")
	if err != nil {
		return nil, err
	}
	return &fleetTLS{ca: filepath.Join(dir, "ca.crt"), serverCert: filepath.Join(dir, "server.crt"), serverKey: filepath.Join(dir, "server.key"),
		client: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{client}, RootCAs: pool, ServerName: "127.0.0.1"},
		server: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{server}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}}, nil
}
