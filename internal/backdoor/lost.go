package backdoor

import (
	"strings"
	"syscall"
	"time"

	"github.com/attest-vm/attest/internal/wire"
)

// A console loses what its reader has no room for. Output has numbers, so a gap in it is an
// error; but the last that a command says has nothing after it. So the shell is asked about a
// command that says nothing. Its answer comes by the same way, after all that the processes
// said that are gone by then.

// What a shell says of a command that it was asked about.
const (
	isHere = "here" // it runs
	isLeft = "left" // it has ended, and what it wrote to may be open
	isGone = "gone" // nothing of it is left
)

// maxQuiet is how many times in a row a command that has ended may have said nothing of the end
// of its standard error.
const maxQuiet = 3

// watch asks about a command again and again, until nothing more is to be heard of it.
func (c *command) watch() {
	timer := time.NewTimer(c.shell.pause)
	defer timer.Stop()
	for quiet := 0; ; timer.Reset(c.shell.pause) {
		select {
		case <-timer.C:
		case <-c.shell.over:
			return
		case <-c.known.Done():
			return
		}
		before := c.progress()
		answer, err := c.shell.askAgain(c.known, "look", c.id)
		if err != nil {
			return
		}
		after := c.progress()
		if quiet++; after.heard != before.heard {
			quiet = 0
		}
		state, input, _ := strings.Cut(answer, ":")
		if what := missing(state, input, before, after, quiet); what != "" {
			c.lose(what)
			return
		}
		if state == isGone { // what others wrote to its standard error after its end is not the command's
			c.endStreams()
			c.shell.forget(c)
			return
		}
		if state == isHere && !after.started {
			c.shell.send(request("again", c.id))
		}
	}
}

// A progress is what has been heard of a command.
type progress struct {
	started, exited, settled bool
	given, answers, heard    int
	open                     bool // its standard output
}

func (c *command) progress() progress {
	c.mu.Lock()
	defer c.mu.Unlock()
	return progress{c.pid != 0, c.end != nil || c.over, c.settled || c.over, c.given, c.answers, c.heard, c.open['o']}
}

// missing is what the shell has said and was not heard; empty: nothing. before is what was heard
// before the shell was asked, after when it has answered.
func missing(state, input string, before, after progress, quiet int) string {
	switch {
	case state == isGone && !after.exited, state == isLeft && !after.exited:
		return "its exit status"
	case state == isGone && after.open, state == isLeft && !after.settled && quiet >= maxQuiet:
		return "the end of its output"
	case state == isHere && input == "idle" && before.given > after.answers:
		return "that it has taken its input"
	}
	return ""
}

// lose ends a command of which the shell has said something that was not heard.
func (c *command) lose(what string) {
	err := &wire.Error{Kind: wire.KindLost, Message: "something was lost on the way from the guest's root shell: " + what}
	c.signal(syscall.SIGKILL)
	if c.abort(err) {
		return
	}
	// Its end is known already, and somebody waits for the rest of its output.
	select {
	case c.shell.garbage <- complaint{c.shell, err}:
	case <-c.shell.over:
	case <-c.known.Done():
	}
}
