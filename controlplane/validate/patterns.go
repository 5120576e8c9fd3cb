package validate

import "buf.build/go/protovalidate"

// patternWords says in words what texts are by the patterns of proto/.
var patternWords = map[string]string{
	"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$":                         `must have only A-Z, a-z, 0-9, '_', '.' and '-', and begin and end with a letter or digit`,
	"^[A-Za-z0-9]([A-Za-z0-9_./-]*[A-Za-z0-9])?$":                        `must have only A-Z, a-z, 0-9, '_', '.', '/' and '-', and begin and end with a letter or digit`,
	"^[A-Za-z0-9]([A-Za-z0-9_.@-]*[A-Za-z0-9])?$":                        `must have only A-Z, a-z, 0-9, '_', '.', '@' and '-', and begin and end with a letter or digit`,
	"^[A-Za-z_][A-Za-z0-9_]*$":                                           `must be the name of a variable: A-Z, a-z, 0-9 and '_', not beginning with a digit`,
	"^[a-z0-9]([a-z0-9-]*[a-z0-9])?([.][a-z0-9]([a-z0-9-]*[a-z0-9])?)*$": `must be a DNS name in lower case, such as "mesh.example.com", without a scheme, port or path`,
	"^[a-z0-9]{8,32}$":                                                   `must be 8 to 32 of a-z and 0-9`,
	"^sha256:[0-9a-f]{64}$":                                              `must be "sha256:" and 64 hexadecimal digits in lower case; weft apikey makes it`,
	"^[A-Za-z0-9._%|-]*$":                                                `must have only A-Z, a-z, 0-9, '.', '_', '%', '|' and '-'`,
	"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$":                                    `must have only a-z, 0-9 and '-', and begin and end with a letter or digit`,
	"^[A-Za-z0-9_-]+([.][A-Za-z0-9_-]+)*$":                               `must be segments of A-Z, a-z, 0-9, '_' and '-' with dots between`,
	"^([345]xx|[3-5][0-9][0-9])$":                                        `must be a status from 300 to 599, such as "409", or a class: "3xx", "4xx" or "5xx"`,
	"^[0-9a-zA-Z@.:_-]+$":                                                `must have only A-Z, a-z, 0-9, '@', '.', ':', '_' and '-'`,
	"^[0-9a-zA-Z@.:_-]*$":                                                `must have only A-Z, a-z, 0-9, '@', '.', ':', '_' and '-'`,
	"^[0-9a-zA-Z-]+$":                                                    `must have only A-Z, a-z, 0-9 and '-'`,
	"^(/[^#]*)?$":                                                        `must begin with '/' and have no '#'`,
	"^[A-Za-z0-9_-][A-Za-z0-9._-]*$":                                     `must be the name of a file: A-Z, a-z, 0-9, '.', '_' and '-', not beginning with '.' and without a folder`,
	"^([A-Za-z0-9_-][A-Za-z0-9._-]*)?$":                                  `must be the name of a file: A-Z, a-z, 0-9, '.', '_' and '-', not beginning with '.' and without a folder`,
	"^[A-Za-z0-9-]*$":                                                    `must have only A-Z, a-z, 0-9 and '-'`,
	"^[a-z0-9]*$":                                                        `must be the name of an attribute: a-z and 0-9`,
}

// broken is the message of a pattern that a text breaks, in words; empty of another
// violation.
func broken(v *protovalidate.Violation) string {
	if v.Proto.GetRuleId() != "string.pattern" {
		return ""
	}
	if v.FieldValue.IsValid() && v.FieldValue.String() == "" {
		return "is required"
	}
	return patternWords[v.RuleValue.String()]
}
