package console

import (
	"context"
	"errors"
	"regexp"
	"sync"
)

// maxText is how much of a console or of a job's output stays in memory,
// for waits and errors.
const maxText = 8 << 20

// A Transcript is the end of what something has written, for those who wait for
// a text in it.
type Transcript struct {
	mu       sync.Mutex
	changed  chan struct{} // closed and replaced when text is added
	text     []byte        // from offset base on
	base     int64         // offset of text[0] in all that was written
	consumed int64         // a wait looks from here on
}

// NewTranscript is an empty transcript.
func NewTranscript() Transcript { return Transcript{changed: make(chan struct{})} }

// end is the offset at which new text is appended. Called with mu held.
func (t *Transcript) end() int64 { return t.base + int64(len(t.text)) }

// added drops what is too long ago and tells those who wait. Called with mu
// held, after text was appended.
func (t *Transcript) added() {
	if extra := len(t.text) - maxText; extra > maxText/4 {
		t.text = append(t.text[:0:0], t.text[extra:]...)
		t.base += int64(extra)
		t.consumed = max(t.consumed, t.base)
	}
	close(t.changed)
	t.changed = make(chan struct{})
}

// Changed returns a channel that is closed when more text arrives.
func (t *Transcript) Changed() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.changed
}

// searchOverlap is how far back a new search begins, so that a match which was
// cut in two by the arrival of its text is found without searching everything
// again for each line.
const searchOverlap = MaxLine

// WaitText waits until re matches what was written since the last match, and
// returns the match. Lines are separated by "\n"; an unfinished line (a prompt)
// counts. When gone is closed nothing follows: ErrGone.
func (t *Transcript) WaitText(ctx context.Context, re *regexp.Regexp, gone <-chan struct{}) (string, error) {
	searched := int64(0)
	over := false
	for {
		t.mu.Lock()
		from := max(t.consumed, searched-searchOverlap)
		if m := re.FindIndex(t.text[from-t.base:]); m != nil {
			match := string(t.text[from-t.base:][m[0]:m[1]])
			t.consumed = from + int64(m[1])
			t.mu.Unlock()
			return match, nil
		}
		searched = t.end()
		changed := t.changed
		t.mu.Unlock()
		if over {
			return "", ErrGone
		}
		select {
		case <-changed:
		case <-gone:
			over = true // what arrived last still counts
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

// ErrGone ends a wait for something of a machine that is off.
var ErrGone = errors.New("the machine is down")

// Append adds text.
func (t *Transcript) Append(p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	t.added()
}

// String is the text that is kept, byte for byte.
func (t *Transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}
