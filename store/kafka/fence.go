package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weft-mesh/weft/store"
)

// A fence is an ACL of the topic by which everybody is denied to write. Beside it stands
// another one, of a user that nobody is, which says that the fence is the mesh's. Both
// come by one request, and go by one.
const (
	everybody = "User:*"
	nobody    = "User:weft-fence"
)

// rule is what an ACL of a topic says of some user. Patterns that cover the topic count,
// whichever they are.
type rule struct {
	principal, host string
	operation       kmsg.ACLOperation
	permission      kmsg.ACLPermissionType
	literal         bool // of that name alone
}

// rules are the ACLs that cover a topic.
type rules []rule

// keepsOut reports whether everybody is denied to write.
func (a rules) keepsOut() bool {
	for _, x := range a {
		if x.principal == everybody && x.host == "*" && x.permission == kmsg.ACLPermissionTypeDeny && (x.operation == kmsg.ACLOperationWrite || x.operation == kmsg.ACLOperationAll) {
			return true
		}
	}
	return false
}

// marked reports whether a fence, if there is one, is the mesh's.
func (a rules) marked() bool {
	for _, x := range a {
		if x.principal == nobody && x.literal {
			return true
		}
	}
	return false
}

// covering asks one broker, or any, for the ACLs that cover a topic.
func covering(ctx context.Context, of kmsg.Requestor, topic string) (rules, error) {
	req := kmsg.NewPtrDescribeACLsRequest()
	req.ResourceType, req.ResourceName, req.ResourcePatternType = kmsg.ACLResourceTypeTopic, &topic, kmsg.ACLResourcePatternTypeMatch
	req.Operation, req.PermissionType = kmsg.ACLOperationAny, kmsg.ACLPermissionTypeAny
	resp, err := req.RequestWith(ctx, of)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err != nil {
		return nil, err
	}
	out := rules{}
	for _, r := range resp.Resources {
		for _, x := range r.ACLs {
			out = append(out, rule{x.Principal, x.Host, x.Operation, x.PermissionType, r.ResourcePatternType == kmsg.ACLResourcePatternTypeLiteral && r.ResourceName == topic})
		}
	}
	return out, nil
}

// Fence denies everybody to write to a topic; see store.Fencer. Super users stay as they
// are: brokers ask nobody about them.
func (s *Store) Fence(ctx context.Context, topic string) (store.Fence, error) {
	const op = "kafka.fence"
	if _, err := s.topic(ctx, topic, true); err != nil {
		return 0, err
	}
	have, err := s.covering(ctx, op, topic)
	switch {
	case errors.Is(err, kerr.SecurityDisabled):
		return 0, store.NoFence(topic, "Kafka has no authorizer")
	case err != nil:
		return 0, err
	case have.keepsOut():
	case len(have) == 0:
		// Where that is allowed, a topic of which no ACL says anything is everybody's, and
		// with the first one nobody's: it could not be read any more.
		return 0, store.NoFence(topic, "no ACL covers it, so that whoever writes to it is a super user, or may since Kafka's allow.everyone.if.no.acl.found is set")
	default:
		if err := s.deny(ctx, op, topic); err != nil {
			return 0, err
		}
	}
	return store.FenceEnforced, s.everywhere(ctx, op, topic, rules.keepsOut)
}

// Unfence removes what Fence has put up.
func (s *Store) Unfence(ctx context.Context, topic string) error {
	const op = "kafka.unfence"
	have, err := s.covering(ctx, op, topic)
	if errors.Is(err, kerr.SecurityDisabled) || err == nil && !have.marked() {
		return nil
	}
	if err == nil {
		err = s.allow(ctx, op, topic)
	}
	if err != nil {
		return err
	}
	return s.everywhere(ctx, op, topic, func(a rules) bool { return !a.marked() })
}

func (s *Store) covering(ctx context.Context, op, topic string) (have rules, err error) {
	err = s.steadily(ctx, op, func(ctx context.Context) (err error) {
		have, err = covering(ctx, s.c, topic)
		return err
	})
	return have, err
}

// deny makes both ACLs, the mark first.
func (s *Store) deny(ctx context.Context, op, topic string) error {
	req := kmsg.NewPtrCreateACLsRequest()
	for _, who := range []string{nobody, everybody} {
		c := kmsg.NewCreateACLsRequestCreation()
		c.ResourceType, c.ResourceName, c.ResourcePatternType = kmsg.ACLResourceTypeTopic, topic, kmsg.ACLResourcePatternTypeLiteral
		c.Principal, c.Host, c.Operation, c.PermissionType = who, "*", kmsg.ACLOperationWrite, kmsg.ACLPermissionTypeDeny
		req.Creations = append(req.Creations, c)
	}
	return s.steadily(ctx, op, func(ctx context.Context) error {
		resp, err := req.RequestWith(ctx, s.c)
		if err != nil {
			return err
		}
		for _, r := range resp.Results {
			err = errors.Join(err, kerr.ErrorForCode(r.ErrorCode))
		}
		return err
	})
}

// allow removes both ACLs, the mark last.
func (s *Store) allow(ctx context.Context, op, topic string) error {
	req := kmsg.NewPtrDeleteACLsRequest()
	for _, who := range []string{everybody, nobody} {
		f := kmsg.NewDeleteACLsRequestFilter()
		f.ResourceType, f.ResourceName, f.ResourcePatternType = kmsg.ACLResourceTypeTopic, &topic, kmsg.ACLResourcePatternTypeLiteral
		f.Principal, f.Host, f.Operation, f.PermissionType = &who, kmsg.StringPtr("*"), kmsg.ACLOperationWrite, kmsg.ACLPermissionTypeDeny
		req.Filters = append(req.Filters, f)
	}
	return s.steadily(ctx, op, func(ctx context.Context) error {
		resp, err := req.RequestWith(ctx, s.c)
		if err != nil {
			return err
		}
		for _, r := range resp.Results {
			err = errors.Join(err, kerr.ErrorForCode(r.ErrorCode))
			for _, x := range r.MatchingACLs {
				err = errors.Join(err, kerr.ErrorForCode(x.ErrorCode))
			}
		}
		return err
	})
}

// everywhere waits until every broker goes by what is so: each learns of ACLs by itself.
func (s *Store) everywhere(ctx context.Context, op, topic string, so func(rules) bool) error {
	return s.until(ctx, op, "the ACLs of topic "+topic+" have changed, but not all brokers go by it", func() (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		brokers, err := s.adm.ListBrokers(ctx)
		if err != nil {
			return false, err
		}
		for _, id := range brokers.NodeIDs() {
			have, err := covering(ctx, s.c.Broker(int(id)), topic)
			if err != nil {
				return false, fmt.Errorf("broker %d: %w", id, err)
			}
			if !so(have) {
				return false, nil
			}
		}
		return true, nil
	})
}

var _ store.Fencer = (*Store)(nil)
