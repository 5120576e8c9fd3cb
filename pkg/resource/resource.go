// Package resource knows the kinds of configuration resources and their
// canonical names, "<kind>/<namespace>/<name>".
package resource

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/weft-mesh/weft/pkg/names"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
)

// APIVersion is the apiVersion of resources in YAML.
const APIVersion = "weft/v1alpha1"

// TypeURL is the type URL of resources on the discovery stream.
const TypeURL = "type.googleapis.com/weft.config.v1alpha1.Resource"

// Kind is a kind as it stands in canonical names.
type Kind string

// The kinds.
const (
	EventStore            Kind = "eventstore"
	Topic                 Kind = "topic"
	Route                 Kind = "route"
	Subscription          Kind = "subscription"
	AccessPolicy          Kind = "accesspolicy"
	Quota                 Kind = "quota"
	Schema                Kind = "schema"
	Identity              Kind = "identity"
	HTTPBinding           Kind = "httpbinding"
	Migration             Kind = "migration"
	TopicBinding          Kind = "topicbinding"
	TopicAdmission        Kind = "topicadmission"
	SubscriptionAdmission Kind = "subscriptionadmission"
	Quarantine            Kind = "quarantine"
	// Manifest is only ever sent; its canonical name is ManifestName.
	Manifest Kind = "manifest"
)

// ManifestName is the discovery name of the manifest resource.
const ManifestName = "manifest"

// Info describes a kind.
type Info struct {
	Kind Kind
	// Title is the kind in YAML ("EventStore").
	Title string
	// Field is the field of Resource's oneof ("event_store").
	Field string
	// System: written by the control plane; users may not apply it.
	System bool
	// Governs: it says what is allowed. A node that is not sent one denies what
	// it could forbid.
	Governs bool
}

// Kinds lists every kind that is stored, in the order in which people read
// them: what others refer to comes first.
func Kinds() []Info {
	return []Info{
		{Kind: EventStore, Title: "EventStore", Field: "event_store"},
		{Kind: Schema, Title: "Schema", Field: "schema"},
		{Kind: Topic, Title: "Topic", Field: "topic"},
		{Kind: Route, Title: "Route", Field: "route"},
		{Kind: HTTPBinding, Title: "HttpBinding", Field: "http_binding"},
		{Kind: Subscription, Title: "Subscription", Field: "subscription"},
		{Kind: Identity, Title: "Identity", Field: "identity", Governs: true},
		{Kind: AccessPolicy, Title: "AccessPolicy", Field: "access_policy", Governs: true},
		{Kind: Quota, Title: "Quota", Field: "quota", Governs: true},
		{Kind: Migration, Title: "Migration", Field: "migration"},
		{Kind: TopicBinding, Title: "TopicBinding", Field: "topic_binding", System: true},
		{Kind: TopicAdmission, Title: "TopicAdmission", Field: "topic_admission", System: true},
		{Kind: SubscriptionAdmission, Title: "SubscriptionAdmission", Field: "subscription_admission", System: true},
		{Kind: Quarantine, Title: "Quarantine", Field: "quarantine", System: true},
	}
}

// Governs reports whether resources of a kind say what is allowed.
func Governs(kind Kind) bool {
	info, _ := Lookup(string(kind))
	return info.Governs
}

// Streamed reports whether resources of a kind are sent to proxies. The others only say
// what the control plane is to do.
func Streamed(kind Kind) bool { return kind != Quarantine && kind != Migration }

// RolledBack reports whether resources of a kind are made what they were where more is
// rolled back. A Migration is not: it would begin a move, or end one.
func RolledBack(kind Kind) bool { return kind != Migration }

// Unasked reports whether resources of a kind apply without anybody having named
// them: they say what is allowed, or where events go.
func Unasked(kind Kind) bool { return Governs(kind) || kind == Route || kind == HTTPBinding }

// Governing is the subscription to what applies unasked in a namespace: its
// resources of all kinds that the control plane counts as Unasked.
func Governing(namespace string) string { return "governing/" + namespace + "/*" }

// CutGoverning is the namespace of a subscription that Governing made.
func CutGoverning(subscription string) (namespace string, ok bool) {
	rest, ok := strings.CutPrefix(subscription, "governing/")
	namespace, ok2 := strings.CutSuffix(rest, "/*")
	return namespace, ok && ok2 && names.CheckNamespace(namespace) == nil
}

// Lookup finds a kind by its canonical name or title, in any case, also in the
// plural ("topics").
func Lookup(s string) (Info, bool) {
	s = strings.ToLower(s)
	for _, k := range Kinds() {
		switch s {
		case string(k.Kind), string(k.Kind) + "s":
			return k, true
		}
	}
	switch s {
	case "accesspolicies":
		return Lookup("accesspolicy")
	case "identities":
		return Lookup("identity")
	}
	return Info{}, false
}

// KindOf is the kind of r's spec; "" without one.
func KindOf(r *configv1.Resource) Kind {
	switch r.GetSpec().(type) {
	case *configv1.Resource_EventStore:
		return EventStore
	case *configv1.Resource_Topic:
		return Topic
	case *configv1.Resource_Route:
		return Route
	case *configv1.Resource_Subscription:
		return Subscription
	case *configv1.Resource_AccessPolicy:
		return AccessPolicy
	case *configv1.Resource_Quota:
		return Quota
	case *configv1.Resource_Schema:
		return Schema
	case *configv1.Resource_Identity:
		return Identity
	case *configv1.Resource_HttpBinding:
		return HTTPBinding
	case *configv1.Resource_Migration:
		return Migration
	case *configv1.Resource_TopicBinding:
		return TopicBinding
	case *configv1.Resource_TopicAdmission:
		return TopicAdmission
	case *configv1.Resource_SubscriptionAdmission:
		return SubscriptionAdmission
	case *configv1.Resource_Quarantine:
		return Quarantine
	case *configv1.Resource_Manifest:
		return Manifest
	}
	return ""
}

// NameOf is r's canonical name, from its kind and metadata.
func NameOf(r *configv1.Resource) string {
	return Name(KindOf(r), r.GetMetadata().GetNamespace(), r.GetMetadata().GetName())
}

// Name makes a canonical name.
func Name(kind Kind, namespace, name string) string {
	return string(kind) + "/" + namespace + "/" + name
}

// Split takes a canonical name apart and checks every part.
func Split(canonical string) (kind Kind, namespace, name string, err error) {
	k, rest, ok := strings.Cut(canonical, "/")
	namespace, name, ok2 := strings.Cut(rest, "/")
	if !ok || !ok2 {
		return "", "", "", fmt.Errorf("%q is not <kind>/<namespace>/<name>", clip(canonical))
	}
	info, known := Lookup(k)
	if !known || string(info.Kind) != k {
		return "", "", "", fmt.Errorf("%q is not a kind", clip(k))
	}
	if err := names.CheckNamespace(namespace); err != nil {
		return "", "", "", err
	}
	if err := names.CheckName("name", name); err != nil {
		return "", "", "", err
	}
	return info.Kind, namespace, name, nil
}

// Marshal is the one encoding of a resource: deterministic, so that equal
// content has equal bytes within one version of the program.
func Marshal(r *configv1.Resource) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(r)
}

func clip(s string) string {
	if len(s) > 120 {
		return s[:120]
	}
	return s
}
