package console

import (
	"bytes"
	"regexp"
)

// While a boot waits for a job, systemd draws a line on the console three times a second:
//
//	[***   ] (1 of 2) Job slow.service/start running (7s / no limit)
//
// Before the next line it moves the cursor up and erases that one. There is no setting
// that keeps its other messages and not this. In what a console has said it would be
// hundreds of lines, so they are left out, with the movements of the cursor. Which units
// a boot waits for attest asks systemd, and says itself.
type animation struct {
	held []byte // of the line that comes, as long as it may be one to leave out
	open bool   // the line has begun to pass
}

const (
	// erase is what systemd writes before the line that follows, without the carriage
	// return (systemd src/core/show-status.c).
	erase = "\x1bM\x1b[K"
	// maxHeld bounds what is held back.
	maxHeld = 1024
)

var (
	drawn = regexp.MustCompile(`^\[[ *]{6}\] (?:\([0-9]+ of [0-9]+\) )?.+? \([^()]* / [^()]*\)`)
	head  = []byte("[......] ") // a dot is a star or a space
)

// pass takes a byte of the console, and appends to out those that are to be shown now.
func (a *animation) pass(out []byte, b byte) []byte {
	if a.open {
		a.open = b != '\n'
		return append(out, b)
	}
	a.held = append(a.held, b)
	line := bytes.TrimPrefix(a.held, []byte(erase))
	switch {
	case b == '\n':
		if !drawn.Match(line) {
			return a.flush(out, line)
		}
		a.held = a.held[:0]
		return out
	case len(a.held) <= len(erase) && bytes.HasPrefix([]byte(erase), a.held), fits(line) && len(line) < maxHeld:
		return out
	}
	return a.flush(out, line)
}

// flush lets a line pass, with what follows up to its end.
func (a *animation) flush(out, line []byte) []byte {
	out = append(out, line...)
	a.held, a.open = a.held[:0], len(line) > 0 && line[len(line)-1] != '\n'
	return out
}

// fits reports whether a line may become one that is drawn.
func fits(line []byte) bool {
	for i, want := range head[:min(len(line), len(head))] {
		if want == '.' && line[i] != '*' && line[i] != ' ' || want != '.' && line[i] != want {
			return false
		}
	}
	return true
}
