package attest

import (
	"context"
	"errors"
	"regexp"
	"sync"
)

// maxTranscript is how much of a console or of a job's output stays in memory,
// for waits and errors.
const maxTranscript = 8 << 20

// A transcript is the end of what something has written, for those who wait for
// a text in it.
type transcript struct {
	mu       sync.Mutex
	changed  chan struct{} // closed and replaced when text is added
	text     []byte        // from offset base on
	base     int64         // offset of text[0] in all that was written
	consumed int64         // a wait looks from here on
}

func newTranscript() transcript { return transcript{changed: make(chan struct{})} }

// end is the offset at which new text is appended. Called with mu held.
func (t *transcript) end() int64 { return t.base + int64(len(t.text)) }

// added drops what is too long ago and tells those who wait. Called with mu
// held, after text was appended.
func (t *transcript) added() {
	if extra := len(t.text) - maxTranscript; extra > maxTranscript/4 {
		t.text = append(t.text[:0:0], t.text[extra:]...)
		t.base += int64(extra)
		t.consumed = max(t.consumed, t.base)
	}
	close(t.changed)
	t.changed = make(chan struct{})
}

// next returns a channel that is closed when more text arrives.
func (t *transcript) next() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.changed
}

// searchOverlap is how far back a new search begins, so that a match which was
// cut in two by the arrival of its text is found without searching everything
// again for each line.
const searchOverlap = maxConsoleLine

// waitText waits until re matches what was written since the last match, and
// returns the match. Lines are separated by "\n"; an unfinished line (a prompt)
// counts. When gone is closed nothing follows: errMachineGone.
func (t *transcript) waitText(ctx context.Context, re *regexp.Regexp, gone <-chan struct{}) (string, error) {
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
			return "", errMachineGone
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

// errMachineGone ends a wait for something of a machine that is off.
var errMachineGone = errors.New("the machine is down")
