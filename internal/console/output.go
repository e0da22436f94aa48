package console

import (
	"bytes"

	"github.com/attest-vm/attest/internal/printable"
)

// An Output keeps one stream of a command, up to a limit, and publishes it line by
// line while it arrives. It has one writer.
type Output struct {
	publish func(line string)
	limit   int
	text    bytes.Buffer
	line    []byte // the unfinished one
}

// NewOutput keeps limit bytes, and publishes lines that are safe to show.
func NewOutput(limit int, publish func(line string)) *Output {
	return &Output{limit: limit, publish: publish}
}

func (o *Output) Write(p []byte) (int, error) {
	o.text.Write(p[:min(len(p), o.limit-o.text.Len())])
	for rest := p; len(rest) > 0; {
		line, after, complete := bytes.Cut(rest, []byte("\n"))
		o.line = append(o.line, line...)
		if complete || len(o.line) >= MaxLine {
			o.publishLine()
		}
		rest = after
	}
	return len(p), nil
}

func (o *Output) publishLine() {
	o.publish(printable.Line(string(o.line)))
	o.line = o.line[:0]
}

// Finish publishes an unfinished line, since nothing follows, and returns all that
// was kept, byte for byte.
func (o *Output) Finish() string {
	if len(o.line) > 0 {
		o.publishLine()
	}
	return o.text.String()
}
