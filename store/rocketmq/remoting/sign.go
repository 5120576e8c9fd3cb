package remoting

import (
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // the protocol's own: HMAC-SHA1
	"encoding/base64"
	"io"
	"maps"
	"slices"
)

// Names of the fields that a signature adds.
const (
	fieldAccessKey = "AccessKey"
	fieldSignature = "Signature"
)

// Sign gives a request's fields with the access key and the signature that
// RocketMQ's access control asks for: the base64 of the HMAC-SHA1, by the secret
// key, of the values of all fields, the access key among them, in the order of
// their names, and the body. It leaves fields as they are.
func Sign(fields map[string]string, body []byte, accessKey, secretKey string) map[string]string {
	out := make(map[string]string, len(fields)+2)
	maps.Copy(out, fields)
	out[fieldAccessKey] = accessKey
	mac := hmac.New(sha1.New, []byte(secretKey))
	for _, name := range slices.Sorted(maps.Keys(out)) {
		_, _ = io.WriteString(mac, out[name])
	}
	_, _ = mac.Write(body)
	out[fieldSignature] = base64.StdEncoding.EncodeToString(mac.Sum(nil))
	return out
}
