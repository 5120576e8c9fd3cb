// Package names has the one place where names are checked, matched and turned
// into names of stores. Authorisation and dispatch use the same functions on
// the same string, so that they cannot disagree.
package names

import (
	"crypto/sha256"
	"fmt"
	"strconv"
	"strings"
	"unicode"
)

// Limits, in bytes.
const (
	MaxNamespace = 32
	// MaxName bounds a name, and a topic's name also after escaping.
	MaxName = 80
	// MaxPhysical is the longest physical topic name that every store takes.
	MaxPhysical = 127
)

// Error says which rule a name breaks.
type Error struct {
	What string // "namespace", "topic", "pattern" …
	Name string // clipped
	Rule string
}

func (e *Error) Error() string { return fmt.Sprintf("%s %q %s", e.What, e.Name, e.Rule) }

func bad(what, name, rule string) error {
	if len(name) > 96 {
		name = name[:96]
	}
	return &Error{what, name, rule}
}

// CheckNamespace checks a namespace: 1 to 32 of [a-z0-9-], no hyphen at either end.
func CheckNamespace(ns string) error {
	if ns == "" || len(ns) > MaxNamespace {
		return bad("namespace", ns, "must have 1 to 32 characters")
	}
	for i := 0; i < len(ns); i++ {
		if c := ns[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return bad("namespace", ns, "may only have the characters a-z, 0-9 and '-'")
		}
	}
	if ns[0] == '-' || ns[len(ns)-1] == '-' {
		return bad("namespace", ns, "must begin and end with a letter or digit")
	}
	return nil
}

// CheckName checks a topic's or another resource's name: dot-separated,
// non-empty segments of [A-Za-z0-9_-], at most 80 bytes, also when escaped.
// what goes into the error ("topic").
func CheckName(what, name string) error { return check(what, name, false) }

// CheckPattern checks a pattern: a name in which a whole segment may be "*",
// and the last one ">".
func CheckPattern(what, pattern string) error { return check(what, pattern, true) }

func check(what, name string, pattern bool) error {
	if name == "" {
		return bad(what, name, "must not be empty")
	}
	escaped := len(name)
	start := 0
	for i := 0; i <= len(name); i++ {
		if i == len(name) || name[i] == '.' {
			if i == start {
				return bad(what, name, "must not have an empty segment")
			}
			if i < len(name) {
				escaped++
			}
			start = i + 1
			continue
		}
		c := name[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-':
		case c == '_':
			escaped++
		case pattern && (c == '*' || c == '>'):
			alone := i == start && (i+1 == len(name) || name[i+1] == '.')
			if !alone {
				return bad(what, name, "must use '*' and '>' as a whole segment")
			}
			if c == '>' && i+1 != len(name) {
				return bad(what, name, "must have '>' only as the last segment")
			}
		default:
			return bad(what, name, "may only have the characters A-Z, a-z, 0-9, '_', '-' and '.'")
		}
	}
	if escaped > MaxName {
		return bad(what, name, "is longer than 80 characters ('_' and '.' count twice)")
	}
	return nil
}

// IsPattern reports whether s has a wildcard.
func IsPattern(s string) bool { return strings.ContainsAny(s, "*>") }

// Match reports whether the pattern (or plain name) matches name: '*' is
// exactly one segment, '>' one or more at the end. Both have been checked.
func Match(pattern, name string) bool {
	for {
		p, prest, pmore := strings.Cut(pattern, ".")
		if p == ">" {
			return name != ""
		}
		n, nrest, nmore := strings.Cut(name, ".")
		if p != "*" && p != n || n == "" {
			return false
		}
		if pmore != nmore {
			return false
		}
		if !pmore {
			return true
		}
		pattern, name = prest, nrest
	}
}

// Meet reports whether some name is matched by both patterns (or plain names), which have
// been checked.
func Meet(a, b string) bool {
	for {
		s, arest, amore := strings.Cut(a, ".")
		t, brest, bmore := strings.Cut(b, ".")
		switch {
		case s == ">" || t == ">":
			return true
		case s != "*" && t != "*" && s != t || amore != bmore:
			return false
		case !amore:
			return true
		}
		a, b = arest, brest
	}
}

// Covers reports whether wide matches every name that narrow does; both are patterns (or
// plain names) that have been checked.
func Covers(wide, narrow string) bool {
	for {
		w, wrest, wmore := strings.Cut(wide, ".")
		n, nrest, nmore := strings.Cut(narrow, ".")
		switch {
		case w == ">":
			return true
		case n == ">" || w != "*" && w != n || wmore != nmore:
			return false
		case !wmore:
			return true
		}
		wide, narrow = wrest, nrest
	}
}

// Physical is the name of a topic in a store: "<namespace>_<topic>", where '_'
// in the topic becomes "__" and '.' becomes "_-". It is injective, has only
// characters that every store takes, and at most MaxPhysical-14 bytes.
func Physical(namespace, topic string) string {
	var b strings.Builder
	b.Grow(len(namespace) + len(topic) + 8)
	b.WriteString(namespace)
	b.WriteByte('_')
	for i := 0; i < len(topic); i++ {
		switch c := topic[i]; c {
		case '_':
			b.WriteString("__")
		case '.':
			b.WriteString("_-")
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// Epoch is the name, in its store, of an epoch of a topic after the first: first is the
// physical name of the first, number is at least 2 and no other epoch of the topic has
// or had it, uid is the topic's. It has only characters that every store takes, at most
// MaxPhysical, and no other epoch of any topic, nor a topic that Physical names, has it.
func Epoch(first string, number uint32, uid string) string {
	// What follows the name: "_e" is in no name that Physical makes, where '_' is doubled
	// or before '-', but in those of others; the uid tells from these, and from a topic
	// of the same name that was deleted and left its epochs behind.
	sum := sha256.Sum256([]byte(uid + "/" + first))
	suffix := fmt.Sprintf("_e%d_%x", number, sum[:6])
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return '_'
	}, first)
	return clean[:min(len(clean), MaxPhysical-len(suffix))] + suffix
}

// Group is the physical consumer group for one topic of one subscription.
// Members of one group must all read the same topic, or RocketMQ loses events.
func Group(subscriptionUID, topicUID string) string {
	return "weft-" + subscriptionUID + "-" + topicUID
}

// GroupOf is the Group in an epoch of the topic, which may be in the store of another one.
func GroupOf(subscriptionUID, topicUID string, epoch uint32) string {
	if epoch == 1 {
		return Group(subscriptionUID, topicUID)
	}
	return Group(subscriptionUID, topicUID) + "-e" + strconv.FormatUint(uint64(epoch), 10)
}

// RetryTopic is the physical topic that holds a subscription's events between
// attempts.
func RetryTopic(subscriptionUID string) string { return "weft-retry-" + subscriptionUID }

// ReplyTopic is the physical topic over which replies reach the proxy that waits for
// them, in the store of an EventStore.
func ReplyTopic(storeUID string) string { return "weft-reply-" + storeUID }

// DelayTopic is the physical topic that holds what is delayed in the store of an
// EventStore, where the mesh delays in its place, by class of delays; the group that
// reads it has the same name.
func DelayTopic(storeUID string, class int) string {
	return "weft-delay-" + storeUID + "-" + strconv.Itoa(class)
}

// RetryGroup is the physical group that reads a subscription's retry topic.
func RetryGroup(subscriptionUID string) string { return "weft-retry-" + subscriptionUID }

// FollowGroup is the physical group that reads what comes to an epoch of a topic behind its
// cut, which whoever writes past the mesh has written.
func FollowGroup(topicUID string, epoch uint32) string {
	return "weft-follow-" + topicUID + "-e" + strconv.FormatUint(uint64(epoch), 10)
}

// ValidNodeID reports whether a text may be the node id of a proxy: 1 to 128 of
// A-Z, a-z, 0-9, '.', '_' and '-'.
func ValidNodeID(id string) bool {
	return len(id) > 0 && len(id) <= 128 && strings.IndexFunc(id, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '_' && r != '-'
	}) < 0
}

// Text is what somebody else has said, as it is kept and shown: at most n bytes of
// valid UTF-8, with "?" for each control or format character, so that it stays in its
// line and commands no terminal.
func Text(s string, n int) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s[:min(len(s), n)], ""))
}
