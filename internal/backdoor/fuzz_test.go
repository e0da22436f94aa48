package backdoor

import (
	"bytes"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/wire"
)

// Whatever a guest says about a command, it has at most one end, and its streams end.
func FuzzFrames(f *testing.F) {
	f.Add("c", "p:100\no:0:12:hello\\ world\no0:1:0:\ne:0:10:$'a\\303\\n'\no+:2:8:aGVsbG8=\no+:3:1:.\ne.:1:0:\nx:0")
	f.Add("c", "x:1:down\nx:2\ne.:0:0:\no.:0:0:\no.:1:0:")
	f.Add("c", "f:notfound:no such thing\np:5")
	f.Add("c", "o:0:7:$'\\400'\ni:0\ni:0\np:-1")
	f.Add("other", "done:\nhello")
	f.Fuzz(func(t *testing.T, id, frames string) {
		s := newShell("box", "S", wire.Info{}, func([]byte) {})
		c, err := s.newCommand(wire.ExecRequest{Job: "c", Stdin: true}, 0)
		if err != nil {
			t.Fatal(err)
		}
		read := make(chan int, 2)
		for _, file := range c.files {
			go func() {
				n, _ := io.Copy(io.Discard, file)
				file.Close()
				read <- int(n)
			}()
		}
		for line := range strings.SplitSeq(frames, "\n") {
			s.hear(id, line)
		}
		s.close()
		if n := <-read + <-read; n > len(frames) {
			t.Errorf("%d bytes of output of %d", n, len(frames))
		}
		<-c.ended
		select {
		case <-c.ended:
			t.Error("it has ended twice")
		default:
		}
		if len(s.commands) > 0 {
			t.Error("it is not forgotten")
		}
	})
}

// What bash quotes comes back, whatever its bytes are, and what it does not write is no panic.
func FuzzUnquote(f *testing.F) {
	for _, text := range []string{"", "a b", "$'\\n'", "'", "\\", "~#!", "ä\xff\x01\x1b", "$'\\"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		unquote(text)
		decodeOutput("+", text)
		if strings.Contains(text, "\x00") || len(text) > 1000 {
			return
		}
		cmd := exec.Command("bash", "-c", `LC_ALL=C; printf %q "$1"`, "bash", text)
		quoted, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := unquote(string(quoted)); err != nil || string(got) != text {
			t.Errorf("%q as %s: got %q, %v", text, quoted, got, err)
		}
	})
}

// A hello of a guest is bounded, and makes sense or is none.
func FuzzGreeting(f *testing.F) {
	f.Add("hello", "S:boot:1.5:6.1:host")
	f.Add("job", "x")
	f.Add("hello", ":::::")
	f.Add("hello", "S:b:-1e400:k:h:more")
	f.Fuzz(func(t *testing.T, word, text string) {
		g := &greeting{nonce: "N", stop: func() {}}
		if !g.hear(reply{nonce: "N", word: word, text: text}) {
			return
		}
		s := g.shell("box", func([]byte) {})
		if s.name == "" || s.info.Uptime < 0 || !isShell(s.info.Instance) {
			t.Errorf("got %+v", s.info)
		}
	})
}

// A mark is taken out of standard error wherever it is cut, and nothing else is.
func TestMark(t *testing.T) {
	c := &command{mark: "MARKMARX"}
	text := "aMARKMARKMARX\x00b"
	for cut := range len(text) + 1 {
		c.rest = nil
		first, early := c.unmarked([]byte(text[:cut]))
		first = bytes.Clone(first)
		second, late := c.unmarked([]byte(text[cut:]))
		if got := string(first) + string(second) + string(c.rest); got != "aMARKb" || early == late {
			t.Errorf("cut at %d: %q, %v, %v", cut, got, early, late)
		}
	}
}
