package rocketmq

import (
	"strings"
	"sync"
	"time"

	"github.com/weft-mesh/weft/store/rocketmq/remoting"
)

// Keys are the user's name and password of RocketMQ's access control.
type Keys struct{ Access, Secret string }

// String hides both: what is formatted ends up in logs.
func (Keys) String() string { return "(keys)" }

// GoString is String.
func (k Keys) GoString() string { return k.String() }

// rereadEvery is how often keys that the servers refuse are read again, at most.
const rereadEvery = time.Second

// signer has the keys in use. It is safe for concurrent use.
type signer struct {
	source func() (Keys, error)

	mu   sync.Mutex
	keys Keys
	read time.Time
}

// newSigner reads the keys for the first time. Without a source nothing is
// signed.
func newSigner(source func() (Keys, error)) (*signer, error) {
	if source == nil {
		return nil, nil
	}
	keys, err := source()
	return &signer{source: source, keys: keys, read: time.Now()}, err
}

func (s *signer) current() Keys {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys
}

// renew is told that keys were refused, and reports whether there are others now.
func (s *signer) renew(refused Keys) (Keys, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keys == refused && time.Since(s.read) >= rereadEvery {
		s.read = time.Now()
		if keys, err := s.source(); err == nil {
			s.keys = keys
		}
	}
	return s.keys, s.keys != refused
}

// denied reports whether an answer says that the request's signature, or what its
// user may do, is not good enough.
func denied(cmd *remoting.Command) bool {
	switch cmd.Code {
	case resNoPermission:
		// Brokers also say it of topics and groups that are closed to everyone.
		return !strings.Contains(cmd.Remark, "forbidden") && !strings.Contains(cmd.Remark, "group no permission")
	case resSystemError:
		return strings.Contains(cmd.Remark, "AclException") // 4.x
	}
	return false
}

// hide takes keys out of what a server said.
func (k Keys) hide(remark string) string {
	return strings.NewReplacer(k.Access, "(access key)", k.Secret, "(secret key)").Replace(remark)
}
