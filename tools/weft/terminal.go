package weft

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// isTerminal reports whether w, or a reader, is one.
func isTerminal(w any) bool {
	if _, ok := w.(terminal); ok {
		return true
	}
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// terminal is a terminal that what is shown cannot drive: events, names and messages are
// of others, and their control characters are shown escaped.
type terminal struct{ f *os.File }

// forPeople is w; where that is a terminal, only what is harmless reaches it.
func forPeople(w io.Writer) io.Writer {
	if f, ok := w.(*os.File); ok && isTerminal(w) {
		return terminal{f}
	}
	return w
}

// input is what a command reads, which Ctrl-C ends too.
type input struct {
	ctx context.Context //nolint:containedctx // io.Reader has none
	r   io.Reader
}

func inputOf(cmd *cobra.Command) io.Reader { return input{cmd.Context(), cmd.InOrStdin()} }

// Read implements io.Reader. What is read after ctx has ended is lost.
func (i input) Read(b []byte) (int, error) {
	type answer struct {
		n   int
		err error
	}
	got, own := make(chan answer, 1), make([]byte, len(b))
	go func() {
		n, err := i.r.Read(own)
		got <- answer{n, err}
	}()
	select {
	case a := <-got:
		return copy(b, own[:a.n]), a.err
	case <-i.ctx.Done():
		return 0, i.ctx.Err()
	}
}

// own is w for the control characters that are our own.
func own(w io.Writer) io.Writer {
	if t, ok := w.(terminal); ok {
		return t.f
	}
	return w
}

// Write implements io.Writer. A character that is split between two calls is shown as
// its bytes.
func (t terminal) Write(b []byte) (int, error) {
	if _, err := io.WriteString(t.f, escaped(string(b))); err != nil {
		return 0, err
	}
	return len(b), nil
}

// escaped is s with the characters that drive a terminal, or reorder what it shows, as
// JSON writes them, and bytes that are no UTF-8 in hexadecimal.
func escaped(s string) string {
	if utf8.ValidString(s) && strings.IndexFunc(s, drives) < 0 {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case drives(r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String()
}

func drives(r rune) bool {
	return r != '\n' && r != '\t' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r))
}
