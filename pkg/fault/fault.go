// Package fault is the one error type of the mesh: a class that says what the
// receiver may do about the error, and a stable reason.
package fault

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Class says what the receiver of an error may do about it.
type Class uint8

// The classes. Frontends map them to their protocols in one table each.
const (
	Internal        Class = iota // a bug here; the zero value, so an unclassified error is loud
	Invalid                      // the caller's input is wrong: never retry
	TooLarge                     // the caller's input is larger than a limit: never retry
	Unauthenticated              // who is this? never retry as is
	Denied                       // not allowed: never retry as is
	NotFound                     // there is no such thing (told only to those who may know): never retry as is
	Conflict                     // it was changed meanwhile: read it again
	Precondition                 // the state of something else forbids it
	Throttled                    // over a quota or a full queue: retry here after RetryAfter; nothing was done
	Unavailable                  // a dependency is down or draining: retry later or elsewhere; nothing was done
	Ambiguous                    // the operation may have happened: retry only if repeating it is harmless
	Canceled                     // the caller gave up; nothing was done
)

var classNames = [...]string{
	"internal", "invalid", "too large", "unauthenticated", "denied", "not found", "conflict",
	"failed precondition", "throttled", "unavailable", "ambiguous", "canceled",
}

// Classes lists every class, for tests that walk all of them.
func Classes() []Class {
	cs := make([]Class, len(classNames))
	for i := range cs {
		cs[i] = Class(i)
	}
	return cs
}

func (c Class) String() string {
	if int(c) < len(classNames) {
		return classNames[c]
	}
	return fmt.Sprintf("class %d", uint8(c))
}

// Error is a classified error. It is immutable once returned.
type Error struct {
	Class      Class
	Op         string        // the step that failed: "rocketmq.publish"; not for clients
	Reason     string        // stable, machine-readable: "topic-not-ready"
	Msg        string        // for people, without secrets; may go to clients
	RetryAfter time.Duration // with Throttled and Unavailable; 0 means unknown
	Err        error         // the cause; for logs, not for clients
}

func (e *Error) Error() string {
	s := e.Op
	if s != "" {
		s += ": "
	}
	switch {
	case e.Msg != "":
		s += e.Msg
	case e.Reason != "":
		s += e.Reason
	default:
		s += e.Class.String()
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// New makes an error with a message.
func New(c Class, op, reason, format string, args ...any) *Error {
	return &Error{Class: c, Op: op, Reason: reason, Msg: fmt.Sprintf(format, args...)}
}

// Wrap makes an error with a cause.
func Wrap(c Class, op, reason string, err error) *Error {
	return &Error{Class: c, Op: op, Reason: reason, Err: err}
}

// From returns the *Error in err's chain. A context's error becomes Canceled
// (deadline or cancellation), anything else Internal, a nil *Error that is not
// nil as an error too. nil gives nil.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		if e == nil {
			return &Error{Class: Internal, Reason: "internal", Msg: "internal error", Err: errNil}
		}
		return e
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return &Error{Class: Canceled, Reason: "canceled", Msg: "the call was canceled or its deadline passed", Err: err}
	}
	return &Error{Class: Internal, Reason: "internal", Msg: "internal error", Err: err}
}

// errNil is the cause of an error that somebody made of a nil *Error.
var errNil = errors.New("a nil *fault.Error was returned as an error")

// ClassOf is the class of err; Internal for an unclassified one. err is not nil.
func ClassOf(err error) Class { return From(err).Class }

// Untakeable reports whether what was given is refused for what it is, or some of it: so it
// is whenever it is tried again. err is not nil.
func Untakeable(err error) bool {
	class := ClassOf(err)
	return class == TooLarge || class == Invalid
}

// Retryable reports whether trying again later may help without the caller
// changing anything. An Ambiguous error counts: repeating a publish with the
// same source and id is how its outcome is settled.
func Retryable(err error) bool {
	switch ClassOf(err) {
	case Throttled, Unavailable, Ambiguous:
		return true
	}
	return false
}
