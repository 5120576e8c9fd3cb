package event

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// Limits of an event's attributes. Stores and protocols carry what is within.
const (
	// MaxAttributes is the largest number of extension attributes.
	MaxAttributes = 64
	// MaxAttributeName is the longest attribute name, in bytes.
	MaxAttributeName = 64
	// MaxAttributeValue is the longest attribute value, in bytes.
	MaxAttributeValue = 8 << 10
	// MaxAdded is how many extension attributes more the mesh may have added to an event.
	MaxAdded = 16
	// MaxAttributeBytes bounds names and values of all attributes together.
	MaxAttributeBytes = 24 << 10
)

// An AttributeError names the attribute that breaks a rule of CloudEvents 1.0
// or a limit.
type AttributeError struct {
	Name string
	Rule string
}

func (e *AttributeError) Error() string { return fmt.Sprintf("attribute %q %s", e.Name, e.Rule) }

// Validate checks the required attributes, names, values and limits. The error
// is an *AttributeError for the first problem. It does not look at Mesh or at
// the size of Data.
func (e *Event) Validate() error { return e.check(0, 0) }

// Conforms is Validate for an event that a store gives: the mesh may have added
// attributes to it, which the limits have room for.
func (e *Event) Conforms() error { return e.check(MaxAdded, 8<<10) }

// check is Validate with room for more attributes and bytes of them.
func (e *Event) check(more, moreBytes int) error {
	for _, a := range [...]struct {
		name, value string
		required    bool
	}{
		{AttrID, e.ID, true}, {AttrSource, e.Source, true}, {AttrType, e.Type, true},
		{AttrSubject, e.Subject, false}, {AttrTime, e.Time, false},
		{AttrDataContentType, e.DataContentType, false}, {AttrDataSchema, e.DataSchema, false},
	} {
		if a.value == "" {
			if a.required {
				return &AttributeError{a.name, "is required and must not be empty"}
			}
			continue
		}
		if err := CheckValue(a.name, a.value); err != nil {
			return err
		}
	}
	if e.Time != "" && !validTime(e.Time) {
		return &AttributeError{AttrTime, "is not an RFC 3339 timestamp"}
	}
	if most := MaxAttributes + more; len(e.Ext) > most {
		return &AttributeError{clip(e.Ext[most].Name), fmt.Sprintf("is one more than the %d extension attributes that are allowed", most)}
	}
	total := e.Size() - len(e.Data)
	for i := range e.Ext {
		a := &e.Ext[i]
		if !ValidName(a.Name) {
			return &AttributeError{clip(a.Name), fmt.Sprintf("has a name that is not 1 to %d characters of [a-z0-9]", MaxAttributeName)}
		}
		if a.Name == "data" || a.Name == "database64" {
			return &AttributeError{a.Name, "has a name that is kept for the data"}
		}
		if isContext(a.Name) {
			return &AttributeError{a.Name, "is a context attribute, given twice"}
		}
		if i > 0 && e.Ext[i-1].Name >= a.Name {
			return &AttributeError{a.Name, "is given twice"}
		}
		if err := CheckValue(a.Name, a.Value); err != nil {
			return err
		}
	}
	if most := MaxAttributeBytes + moreBytes; total > most {
		return &AttributeError{"*", fmt.Sprintf("set is %d bytes in all, the most is %d", total, most)}
	}
	return nil
}

// validTime reports whether s is a timestamp of RFC 3339. time.Parse also takes an
// hour of one digit, a comma and an offset of 24 hours, which others do not.
func validTime(s string) bool {
	if _, err := time.Parse(time.RFC3339Nano, s); err != nil {
		return false
	}
	offset := s[len(s)-min(6, len(s)):]
	return s[13] == ':' && !strings.Contains(s, ",") && (strings.HasSuffix(s, "Z") || offset[1:3] < "24" && offset[4:] < "60")
}

// ValidName reports whether name may name an attribute (CloudEvents 1.0,
// "Naming Conventions"): lower-case letters and digits.
func ValidName(name string) bool {
	if name == "" || len(name) > MaxAttributeName {
		return false
	}
	for i := 0; i < len(name); i++ {
		if c := name[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

func isContext(name string) bool {
	switch name {
	case AttrID, AttrSource, AttrSpecVersion, AttrType, AttrSubject, AttrTime, AttrDataContentType, AttrDataSchema, "data", "database64":
		return true
	}
	return false
}

// CheckValue checks what CloudEvents 1.0 asks of a String, that it is valid Unicode
// without control characters and noncharacters, and its length.
func CheckValue(name, v string) error {
	if len(v) > MaxAttributeValue {
		return &AttributeError{name, fmt.Sprintf("is %d bytes long, the most is %d", len(v), MaxAttributeValue)}
	}
	if printable(v) {
		return nil
	}
	for i := 0; i < len(v); i++ {
		if c := v[i]; c < 0x20 || c == 0x7f {
			return &AttributeError{name, fmt.Sprintf("has the control character U+%04X", c)}
		}
	}
	if !utf8.ValidString(v) {
		return &AttributeError{name, "is not valid UTF-8"}
	}
	for _, r := range v {
		if r >= 0x80 && r <= 0x9f || r >= 0xfdd0 && r <= 0xfdef || r&0xfffe == 0xfffe {
			return &AttributeError{name, fmt.Sprintf("has the character U+%04X, which CloudEvents does not allow", r)}
		}
	}
	return nil
}

// printable reports whether v has nothing but printable characters of ASCII, as nearly all
// values. Of eight bytes at a time it looks at the highest bits: of each byte, of one more,
// which 0x7f makes, and of 0x60 more, which all from 0x20 on make.
func printable(v string) bool {
	const ones = 0x0101010101010101
	if len(v) < 8 {
		for i := 0; i < len(v); i++ {
			if v[i] < 0x20 || v[i] >= 0x7f {
				return false
			}
		}
		return true
	}
	bad := uint64(0)
	for i := 0; ; i += 8 {
		i = min(i, len(v)-8) // the last ones may be looked at twice
		x := binary.LittleEndian.Uint64([]byte(v[i : i+8]))
		bad |= x | (x + ones) | ^(x + 0x60*ones)
		if i == len(v)-8 {
			return bad&(0x80*ones) == 0
		}
	}
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80]
	}
	return s
}
