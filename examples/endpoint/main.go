// Command endpoint is a target for Subscriptions with push, to try them: it prints each
// call and answers that it was taken, and to a handshake that it wants events.
//
//	go run ./examples/endpoint
package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
	"time"
)

// maxBody is the most that is read of a call.
const maxBody = 8 << 20

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "`HOST:PORT` to listen at")
	cert := flag.String("cert", "", "`file` with the certificate to serve HTTPS with")
	key := flag.String("key", "", "`file` with its key")
	ca := flag.String("ca", "", "`file` with the authority of the certificates that callers must show; without it none is asked for")
	flag.Parse()
	if err := serve(*addr, *cert, *key, *ca); err != nil {
		log.Fatal(err)
	}
}

func serve(addr, cert, key, ca string) error {
	s := &http.Server{Addr: addr, Handler: http.HandlerFunc(called), ReadTimeout: 10 * time.Second}
	if cert == "" {
		return s.ListenAndServe()
	}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return fmt.Errorf("-ca: %w", err)
		}
		s.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: x509.NewCertPool()}
		if !s.TLSConfig.ClientCAs.AppendCertsFromPEM(pem) {
			return errors.New("-ca: the file has no certificate in PEM")
		}
	}
	return s.ListenAndServeTLS(cert, key)
}

// called prints a call on one line.
func called(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if r.Method == http.MethodOptions {
		w.Header().Set("WebHook-Allowed-Origin", r.Header.Get("WebHook-Request-Origin"))
	}
	line := []string{r.Method, r.URL.RequestURI()}
	for _, h := range []string{"ce-type", "ce-id", "Idempotency-Key", "Authorization"} {
		if v := r.Header.Get(h); v != "" {
			line = append(line, h+"="+v)
		}
	}
	if n := len(strings.Fields(r.Header.Get("webhook-signature"))); n > 0 {
		line = append(line, fmt.Sprintf("signatures=%d", n))
	}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		line = append(line, "certificate="+r.TLS.PeerCertificates[0].Subject.CommonName)
	}
	fmt.Fprintf(os.Stdout, "%s %q\n", strings.Join(line, " "), b)
}
