package snapshot

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/quota"
	"github.com/weft-mesh/weft/dataplane/route"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/eventcel"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
	"github.com/weft-mesh/weft/pkg/rest"
	"github.com/weft-mesh/weft/pkg/schema"
	"github.com/weft-mesh/weft/store/position"
)

// Check tells whether this proxy can enforce a resource, by itself, without
// looking at others. What it accepts Compile understands. field is the path of
// what is wrong.
//
// A control plane has checked more than this before; a proxy checks what it
// would misapply, since the control plane may be newer.
func Check(r *configv1.Resource) (field string, err error) {
	if len(r.ProtoReflect().GetUnknown()) > 0 {
		return "spec", errors.New("is of a kind, or has a field, that this version does not know")
	}
	kind := resource.KindOf(r)
	if kind == "" {
		return "spec", errors.New("has no kind that this version knows")
	}
	md := r.GetMetadata()
	if err := names.CheckNamespace(md.GetNamespace()); err != nil {
		return "metadata.namespace", err
	}
	if err := names.CheckName("name", md.GetName()); err != nil {
		return "metadata.name", err
	}
	if want := resource.NameOf(r); r.GetName() != want {
		return "name", fmt.Errorf("is %q, kind and metadata say %q", r.GetName(), want)
	}
	if path := resource.UnknownField(r); path != "" {
		return path, errors.New("has a field that this version does not know")
	}
	if path := resource.UnknownValue(r); path != "" {
		return path, errors.New("has a value that this version does not know")
	}
	err = checkSpec(r)
	var pe *policy.FieldError
	var re *route.FieldError
	var te *eventcel.FieldError
	switch {
	case errors.As(err, &pe):
		return pe.Field, errors.New(pe.Reason)
	case errors.As(err, &re):
		return re.Field, errors.New(re.Reason)
	case errors.As(err, &te):
		return "spec.transform." + te.Field, errors.New(te.Reason)
	case err != nil:
		return "spec", err
	}
	return "", nil
}

func checkSpec(r *configv1.Resource) error {
	switch s := r.Spec.(type) {
	case *configv1.Resource_EventStore:
		if s.EventStore.GetDriver() == nil {
			return errors.New("has no driver that this version knows")
		}
	case *configv1.Resource_Route:
		_, err := route.CompileTable(s.Route)
		return err
	case *configv1.Resource_AccessPolicy:
		return policy.CheckPolicy(s.AccessPolicy)
	case *configv1.Resource_Schema:
		var fe *schema.FieldError
		if _, err := schema.Compile(s.Schema); errors.As(err, &fe) {
			return &policy.FieldError{Field: fe.Field, Reason: fe.Reason}
		}
	case *configv1.Resource_Quota:
		return quota.Check(s.Quota)
	case *configv1.Resource_Identity:
		return policy.CheckIdentity(s.Identity)
	case *configv1.Resource_HttpBinding:
		return checkBinding(s.HttpBinding)
	case *configv1.Resource_Subscription:
		return checkSubscription(s.Subscription)
	case *configv1.Resource_TopicBinding:
		if len(s.TopicBinding.Epochs) == 0 {
			return &policy.FieldError{Field: "spec.epochs", Reason: "must not be empty"}
		}
		if m := s.TopicBinding.Move; m != nil {
			if _, known := cutover.PhaseOf(m); !known || len(s.TopicBinding.Epochs) < 2 {
				return &policy.FieldError{Field: "spec.move", Reason: "must have a phase, and be between two epochs"}
			}
		}
	}
	return nil
}

func checkBinding(b *configv1.HttpBinding) error {
	var wrong *rest.FieldError
	rest.CheckBinding(b, func(f *rest.FieldError) {
		if wrong == nil {
			wrong = f
		}
	})
	if wrong != nil {
		return &policy.FieldError{Field: "spec." + wrong.Field, Reason: wrong.Reason}
	}
	return nil
}

func checkSubscription(s *configv1.Subscription) error {
	for i, t := range s.Topics {
		if err := names.CheckPattern("topic", t); err != nil {
			return &policy.FieldError{Field: fmt.Sprintf("spec.topics[%d]", i), Reason: err.Error()}
		}
	}
	if s.StartAt != nil && (s.StartAt.CheckValid() != nil || s.Start != configv1.Start_START_UNSPECIFIED) {
		return &policy.FieldError{Field: "spec.start_at", Reason: "must be a time, and without start"}
	}
	for i, p := range s.StartPositions {
		if _, err := position.Parse(p); err != nil {
			return &policy.FieldError{Field: fmt.Sprintf("spec.start_positions[%d]", i), Reason: "is " + err.Error()}
		}
	}
	if _, err := route.CompileFilter(s.Filter, "spec.filter"); err != nil {
		return err
	}
	if _, err := eventcel.CompileTransform(s.Transform); err != nil {
		return err
	}
	if s.Transform != nil && s.DeadLetterTopic == "" {
		return &policy.FieldError{Field: "spec.dead_letter_topic", Reason: "is required with a transform"}
	}
	if s.OnExhausted == configv1.OnExhausted_ON_EXHAUSTED_DEAD_LETTER && s.DeadLetterTopic == "" {
		return &policy.FieldError{Field: "spec.dead_letter_topic", Reason: "is required with on_exhausted dead_letter"}
	}
	if p := s.GetPush(); p != nil {
		var wrong *rest.FieldError
		rest.CheckPush(p, func(f *rest.FieldError) {
			if wrong == nil {
				wrong = f
			}
		})
		if wrong != nil {
			return &policy.FieldError{Field: "spec.push." + wrong.Field, Reason: wrong.Reason}
		}
	}
	if f := s.GetForward(); f != nil {
		if err := names.CheckName("topic", f.Topic); err != nil {
			return &policy.FieldError{Field: "spec.forward.topic", Reason: err.Error()}
		}
	}
	if s.Rate != nil && s.Rate.Deliveries == 0 {
		return &policy.FieldError{Field: "spec.rate.deliveries", Reason: "must be above zero"}
	}
	for _, d := range []struct {
		field string
		d     *durationpb.Duration
	}{{"spec.ack_timeout", s.AckTimeout}, {"spec.rate.per", s.GetRate().GetPer()}, {"spec.push.timeout", s.GetPush().GetTimeout()},
		{"spec.retry.min_backoff", s.GetRetry().GetMinBackoff()}, {"spec.retry.max_backoff", s.GetRetry().GetMaxBackoff()}} {
		if d.d != nil && (d.d.CheckValid() != nil || d.d.AsDuration() <= 0 || d.d.AsDuration() > 30*24*time.Hour) {
			return &policy.FieldError{Field: d.field, Reason: "must be a duration above zero"}
		}
	}
	return nil
}
