package operation

import (
	"context"
	"strings"
	"unicode/utf8"

	"github.com/attest-vm/attest/internal/event"
)

// Text is what an operation on an object returns as text. Front ends have strings of
// characters; what is not UTF-8 is replaced, which must not go unnoticed. Of a Result,
// which has the bytes too, it is up to the front end when it is read.
func Text(ctx context.Context, object any, o *Operation, s string) string {
	if utf8.ValidString(s) {
		return s
	}
	machine, _ := object.(MachineName)
	event.Publish(ctx, event.Log{Machine: string(machine), Level: "warning", Text: o.Name + ": the output is not UTF-8 text, and what is not is U+FFFD in the result; " +
		"stdout_bytes and stderr_bytes of the result of execute have the bytes as they are"})
	return Unicode(s)
}

// Unicode is a string with U+FFFD for what is not UTF-8: one for each byte, and one for a character of which the end
// is missing. That is how Python decodes with errors="replace", and what the Unicode standard recommends (section 3.9).
func Unicode(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		if r == utf8.RuneError && n == 1 {
			for n < len(s) && !utf8.FullRuneInString(s[:n+1]) {
				n++
			}
		}
		b.WriteRune(r)
		s = s[n:]
	}
	return b.String()
}
