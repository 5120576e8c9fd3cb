package names

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// MaxSubjectPattern bounds a pattern of subjects, in bytes.
const MaxSubjectPattern = 1024

// CheckSubjectPattern checks a pattern of CloudEvents subjects: segments divided by
// "/", of which "*" is any one and ">", which comes last, all that are left, at least
// one. Everything else stands for itself, also case, "." and "%". "" is of events
// without a subject.
func CheckSubjectPattern(p string) error {
	if len(p) > MaxSubjectPattern || !utf8.ValidString(p) {
		return fmt.Errorf("must have at most %d bytes of UTF-8", MaxSubjectPattern)
	}
	for more := true; more; {
		var seg string
		seg, p, more = strings.Cut(p, "/")
		if seg != "*" && seg != ">" && strings.ContainsAny(seg, "*>") {
			return errors.New("must use '*' and '>' as a whole segment")
		}
		if seg == ">" && more {
			return errors.New("must have '>' only as the last segment")
		}
	}
	return nil
}

// MatchSubject reports whether a pattern that CheckSubjectPattern accepts matches a
// subject. Nothing is decoded or made equal: what is compared is what is delivered.
func MatchSubject(pattern, subject string) bool {
	if subject == "" {
		return pattern == ""
	}
	for {
		p, prest, pmore := strings.Cut(pattern, "/")
		if p == ">" {
			return true
		}
		s, srest, smore := strings.Cut(subject, "/")
		if p != "*" && p != s || pmore != smore {
			return false
		}
		if !pmore {
			return true
		}
		pattern, subject = prest, srest
	}
}
