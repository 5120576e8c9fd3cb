package binding

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store/rocketmq"
)

// Limits of what is read: of a file, and of a key in it.
const (
	maxFile = 64 << 10
	maxKey  = 1 << 10
)

// keys reads a pair. Its errors name the reference, never what is there.
func keys(pair *configv1.KeyPair) (k rocketmq.Keys, err error) {
	if k.Access, err = secret(pair.GetAccessKey()); err == nil {
		k.Secret, err = secret(pair.GetSecretKey())
	}
	if err != nil {
		return rocketmq.Keys{}, &fault.Error{Class: fault.Unavailable, Op: "credentials", Reason: "store-secret-missing", RetryAfter: time.Second, Err: err,
			Msg: "a credential of the event store is not where the configuration says"}
	}
	return k, nil
}

// secret reads what ref refers to.
func secret(ref *configv1.SecretRef) (string, error) {
	var what, value string
	switch s := ref.GetSource().(type) {
	case *configv1.SecretRef_File:
		what = "file " + s.File
		b, err := read(s.File)
		if err != nil {
			return "", fmt.Errorf("%s: %w", what, err)
		}
		value = string(b)
	case *configv1.SecretRef_Env:
		what = "environment variable " + s.Env
		value = os.Getenv(s.Env)
	default:
		return "", errors.New("this version does not know where the secret is")
	}
	value = strings.TrimSpace(value)
	switch {
	case value == "":
		return "", fmt.Errorf("%s: is empty or not set", what)
	case len(value) > maxKey:
		return "", fmt.Errorf("%s: has %d bytes, a key has at most %d", what, len(value), maxKey)
	case strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' }):
		// It is something else; one half of a pair travels as it is.
		return "", fmt.Errorf("%s: is not a key: one has printable ASCII characters only, on one line", what)
	}
	return value, nil
}

// read reads a regular file. Its error does not repeat the path.
func read(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, cause(err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("is not a regular file")
	}
	f, err := os.Open(path) //nolint:gosec // the configuration names it
	if err != nil {
		return nil, cause(err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, cause(err)
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("is larger than %d bytes", maxFile)
	}
	return b, nil
}

// cause is err without the path.
func cause(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
