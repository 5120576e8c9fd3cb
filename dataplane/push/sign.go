package push

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/weft-mesh/weft/pkg/event"
)

// Bounds of a key, in bytes, and how its text begins (Standard Webhooks).
const (
	keyPrefix = "whsec_"
	minKey    = 24
	maxKey    = 64
)

var errKey = errors.New(`is no key to sign with: one is "whsec_" and 24 to 64 bytes in base64`)

func parseKey(s string) ([]byte, error) {
	text, ok := strings.CutPrefix(s, keyPrefix)
	key, err := base64.StdEncoding.DecodeString(text)
	if !ok || err != nil || len(key) < minKey || len(key) > maxKey {
		return nil, errKey
	}
	return key, nil
}

// sign sets the headers of Standard Webhooks, with a signature of each key.
func sign(h http.Header, id string, now time.Time, body []byte, keys [][]byte) {
	at := strconv.FormatInt(now.Unix(), 10)
	var signatures strings.Builder
	for i, key := range keys {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(id + "." + at + "."))
		mac.Write(body)
		if i > 0 {
			signatures.WriteByte(' ')
		}
		signatures.WriteString("v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	h["Webhook-Id"] = []string{id}
	h["Webhook-Timestamp"] = []string{at}
	h["Webhook-Signature"] = []string{signatures.String()}
}

// messageID follows from what identifies the event: it is the same at all attempts.
func messageID(e *event.Event) string {
	sum := sha256.Sum256([]byte(strconv.Itoa(len(e.Source)) + ":" + e.Source + e.ID))
	return "msg_" + base64.RawURLEncoding.EncodeToString(sum[:18])
}
