package binding

import (
	"errors"
	"fmt"
	"os"
	"time"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/secretfile"
	"github.com/weft-mesh/weft/store/rocketmq"
)

// maxKey is the longest key, in bytes.
const maxKey = 1 << 10

// keys reads a pair. Its errors name the reference, never what is there.
func keys(pair *configv1.KeyPair) (k rocketmq.Keys, err error) {
	if k.Access, err = secret(pair.GetAccessKey()); err == nil {
		k.Secret, err = secret(pair.GetSecretKey())
	}
	if err != nil {
		return rocketmq.Keys{}, missing(err)
	}
	return k, nil
}

// missing is what err says of a secret.
func missing(err error) error {
	return &fault.Error{Class: fault.Unavailable, Op: "credentials", Reason: "store-secret-missing", RetryAfter: time.Second, Err: err,
		Msg: "a credential of the event store is not where the configuration says"}
}

// secret reads what ref refers to.
func secret(ref *configv1.SecretRef) (string, error) {
	var what, value string
	switch s := ref.GetSource().(type) {
	case *configv1.SecretRef_File:
		what = "file " + s.File
		b, err := secretfile.Read(s.File)
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
	value, err := secretfile.Text([]byte(value), maxKey)
	if err != nil {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	return value, nil
}
