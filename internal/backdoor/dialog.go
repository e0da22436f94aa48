package backdoor

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/attest-vm/attest/internal/printable"
)

// Marker is what a guest says when its root shell is there: the backdoor.service
// of NixOS tests.
const Marker = "Spawning backdoor root shell..."

// maxSaid is how much is kept of what the guest says on the shell's console. Its
// replies are shorter.
const maxSaid = 4 << 10

// A dialog looks in what comes from the guest, which can be anything, for what
// is meant for attest.
type dialog struct {
	line []byte // that is not complete, or the end of it
	last []byte // of all
}

// A reply is a line of attest's functions, or the marker.
type reply struct {
	marker            bool
	nonce, word, text string
}

// feed takes the next bytes and returns what they complete.
func (d *dialog) feed(p []byte) (heard []reply) {
	d.last = keepEnd(append(d.last, p...))
	for _, c := range p {
		if c == '\n' {
			if r, ok := parseReply(string(d.line)); ok {
				heard = append(heard, r)
			}
			d.line = d.line[:0]
			continue
		}
		d.line = keepEnd(append(d.line, c))
		if c == Marker[len(Marker)-1] && bytes.HasSuffix(d.line, []byte(Marker)) {
			heard = append(heard, reply{marker: true})
			d.line = d.line[:0]
		}
	}
	return heard
}

// keepEnd cuts off the beginning of what has grown to twice the limit.
func keepEnd(p []byte) []byte {
	if len(p) < 2*maxSaid {
		return p
	}
	return append(p[:0], p[len(p)-maxSaid:]...)
}

// parseReply reads "attest:NONCE:WORD:TEXT".
func parseReply(line string) (r reply, ok bool) {
	_, line, ok = strings.Cut(strings.TrimSuffix(line, "\r"), "attest:")
	if !ok {
		return reply{}, false
	}
	parts := strings.SplitN(line, ":", 3)
	if len(parts) != 3 {
		return reply{}, false
	}
	return reply{nonce: parts[0], word: parts[1], text: parts[2]}, true
}

// tail is the end of what was said, for people.
func (d *dialog) tail() string {
	text := strings.TrimSpace(string(d.last))
	return printable.Text(text[max(0, len(text)-300):])
}

// request is the line that has the shell do something.
func request(words ...string) []byte {
	var b strings.Builder
	for i, w := range words {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteByte('=')
		for _, c := range []byte(w) {
			if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("_./:,+@-", c) >= 0 {
				b.WriteByte(c)
			} else {
				fmt.Fprintf(&b, "%%%02X", c)
			}
		}
	}
	return fmt.Appendf(nil, "_attest %d %s\n", b.Len(), b.String())
}

// decodeOutput is the part of a command's output that a frame has. form is what follows "o"
// or "e" in its kind.
func decodeOutput(form, text string) ([]byte, error) {
	switch form {
	case "+":
		return base64.StdEncoding.Strict().DecodeString(text)
	case "0":
		return []byte{0}, nil
	}
	return unquote(text)
}

// unquote takes back what printf %q of bash does.
func unquote(text string) ([]byte, error) {
	if inner, ok := strings.CutPrefix(text, "$'"); ok {
		inner, ok = strings.CutSuffix(inner, "'")
		if !ok {
			return nil, errQuoting
		}
		return unescape(inner)
	}
	if text == "''" {
		return nil, nil
	}
	out := make([]byte, 0, len(text))
	for i := 0; i < len(text); i++ {
		c := text[i]
		if c == '\\' {
			if i++; i == len(text) {
				return nil, errQuoting
			}
			c = text[i]
		}
		out = append(out, c)
	}
	return out, nil
}

var errQuoting = fmt.Errorf("it is not quoted as bash does")

// escapes are those of $'…' that bash writes, besides octal numbers.
var escapes = map[byte]byte{'a': '\a', 'b': '\b', 'E': 0x1b, 'e': 0x1b, 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t', 'v': '\v', '\\': '\\', '\'': '\'', '"': '"', '?': '?'}

// unescape is the content of $'…'.
func unescape(text string) ([]byte, error) {
	out := make([]byte, 0, len(text))
	for i := 0; i < len(text); i++ {
		if text[i] == '\'' {
			return nil, errQuoting
		}
		if text[i] != '\\' {
			out = append(out, text[i])
			continue
		}
		if i++; i == len(text) {
			return nil, errQuoting
		}
		if c, ok := escapes[text[i]]; ok {
			out = append(out, c)
			continue
		}
		n, digits := 0, 0
		for ; digits < 3 && i < len(text) && '0' <= text[i] && text[i] <= '7'; digits++ {
			n = 8*n + int(text[i]-'0')
			i++
		}
		if digits == 0 || n > 0xff {
			return nil, errQuoting
		}
		i--
		out = append(out, byte(n))
	}
	return out, nil
}
