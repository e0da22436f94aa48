package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/attest-vm/attest/internal/wire"
)

// FuzzScreen: whatever is on a terminal, its text is lines of its width, of characters
// that do not move the cursor.
func FuzzScreen(f *testing.F) {
	f.Add([]byte("l\x00\x00\x00o\x00\x00\x00g\x00\x00\x00"), 2)
	f.Add([]byte("\xff\xff\xff\xff\x00\xd8\x00\x00\x00\x00\x11\x00\n\x00\x00\x00"), 3)
	f.Add([]byte{}, 0)
	f.Fuzz(func(t *testing.T, data []byte, columns int) {
		columns = max(1, min(columns, math.MaxUint8))
		for _, cells := range [][]rune{characters(data), glyphs(data)} {
			cells = cells[:len(cells)/columns*columns]
			lines := strings.Split(screen(cells, columns), "\n")
			if len(cells) == 0 {
				lines = nil
			}
			if len(lines) != len(cells)/columns {
				t.Errorf("%q: got %d lines of %d cells", data, len(lines), len(cells))
			}
			for _, l := range lines {
				if utf8.RuneCountInString(l) != columns || strings.ContainsFunc(l, func(r rune) bool { return r < ' ' }) {
					t.Errorf("%q: got the line %q, %d wide", data, l, columns)
				}
			}
		}
	})
}

// FuzzMissing: whatever a host says that it has of a job's output, it gets the rest.
func FuzzMissing(f *testing.F) {
	f.Add([]byte("output"), int64(10), int64(12))
	f.Add([]byte("output"), int64(10), int64(math.MinInt64))
	f.Add([]byte("output"), int64(0), int64(math.MaxInt64))
	f.Fuzz(func(t *testing.T, unheard []byte, begins, has int64) {
		begins = max(0, min(begins, math.MaxInt64-int64(len(unheard))))
		got := missing(unheard, begins, has)
		if first := begins + int64(len(unheard)-len(got)); !bytes.HasSuffix(unheard, got) || has <= begins && len(got) != len(unheard) ||
			has > begins && first != min(has, begins+int64(len(unheard))) {
			t.Errorf("who has %d of %q from %d gets %q", has, unheard, begins, got)
		}
	})
}

// FuzzExecRequest: a request is refused, or says of each variable once what it is.
func FuzzExecRequest(f *testing.F) {
	f.Add([]byte(`{"argv": ["ls", "-l"], "env": {"A": "b"}, "user": "root", "dir": "/"}`), []byte{})
	f.Add([]byte(`{"env": {"": "b"}}`), []byte("true"))
	f.Add([]byte(`{"env": {"PATH": "::", "HOME": "\n"}, "argv": [""], "user": ":", "timeout": -1}`), []byte("\x00"))
	f.Add([]byte(`{"argv": [".."], "dir": "\u0000"}`), bytes.Repeat([]byte("x"), 128<<10))
	f.Fuzz(func(t *testing.T, args, script []byte) {
		do(wire.Request{Op: wire.OpExec, Args: args}, func(q wire.ExecRequest) (any, error) {
			q.Long = false
			script, err := longScript(nil, q, script)
			if err != nil {
				return nil, err
			}
			sh := &shell{env: defaultEnv(), isBash: true}
			env, dir, _, err := sh.surroundings(q)
			if err != nil {
				return nil, err
			}
			names := map[string]bool{}
			for _, v := range env {
				name, _, found := strings.Cut(v, "=")
				if !found || name == "" || names[name] || strings.Contains(v, "\x00") {
					t.Errorf("%s: the environment is %q", args, env)
				}
				names[name] = true
			}
			if dir == "" {
				t.Errorf("%s: no directory", args)
			}
			if len(q.Argv) > 0 {
				return lookPath(q.Argv[0], env)
			}
			argv, extra, err := sh.coldArgs(script)
			if err != nil || len(argv) != 3 || strings.Contains(argv[2], "\x00") || len(argv[2]) > 128<<10 || extra == nil && !strings.HasSuffix(argv[2], string(script)) {
				t.Errorf("a script of %d bytes is run as %.100q, %v", len(script), argv, err)
			}
			extra.Close()
			return nil, nil
		})
	})
}

// FuzzIdentity: of an identity that is applied twice each line is there once, and what
// the guest has in its hosts file stays.
func FuzzIdentity(f *testing.F) {
	f.Add([]byte(`{"hosts": [{"name": "web", "addresses": ["192.0.2.1", "2001:db8::1"]}], "interfaces": [{"mac": "52:54:00:12:01:01", "addresses": ["192.0.2.1/24"]}]}`), "127.0.0.1 localhost\n")
	f.Add([]byte(`{"hosts": [{"name": "", "addresses": ["::"]}]}`), "")
	f.Add([]byte(`{"hosts": []}`), hostsBegin+"\nof an earlier one\n")
	f.Add([]byte(`{"hosts": []}`), "no newline"+hostsEnd)
	f.Fuzz(func(t *testing.T, args []byte, old string) {
		var id wire.Identity
		if json.Unmarshal(args, &id) != nil {
			return
		}
		id.Hosts = slices.DeleteFunc(id.Hosts, func(h wire.Host) bool { // what no host asks for
			return strings.ContainsAny(h.Name, "\n#") || slices.ContainsFunc(h.Addresses, func(a netip.Addr) bool { return a.Zone() != "" })
		})
		once := hostsText(old, id.Hosts)
		if twice := hostsText(once, id.Hosts); twice != once {
			t.Errorf("%s, %q: first %q, then %q", args, old, once, twice)
		}
		if !strings.Contains(old, hostsBegin) && !strings.HasSuffix(once, old) {
			t.Errorf("%q became %q", old, once)
		}
		for _, h := range id.Hosts {
			for _, a := range h.Addresses {
				if !strings.Contains(once, a.String()+" "+h.Name+"\n") {
					t.Errorf("%q lacks %v", once, h)
				}
			}
		}
	})
}

// FuzzParseUser: a guest's own files name the user that was asked for, or none.
func FuzzParseUser(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/sh\nalice:x:1000:100::/home/alice:\n", "users:x:100:\nwheel:x:10:alice,bob\n", "alice")
	f.Add("a:x:4294967296:0:::\n:::::::\n", "x:::\n", "")
	f.Fuzz(func(t *testing.T, passwd, group, name string) {
		u := parseUser(passwd, group, name)
		if u != nil && (u.home == "" || u.shell == "" || len(u.groups) == 0 || u.groups[0] != u.gid || !strings.Contains(passwd, name)) {
			t.Errorf("%q of %q, %q: got %+v", name, passwd, group, u)
		}
	})
}

// idle is a stage on which nothing is done.
type idle struct{}

func (idle) Info(*wire.Info) {}
func (idle) Operate(stream *wire.Stream, r wire.Request, _ func(wire.Request) (any, error)) (any, error) {
	return do(r, func(q wire.AdoptRequest) (any, error) {
		_, err := stream.Write(wire.Stdout, r.Body)
		return q, err
	})
}

// scripted is a connection on which a host has said all that it will.
type scripted struct {
	io.Reader
	io.Writer
}

func (scripted) Close() error { return nil }

// FuzzServer: whatever frames a host sends, in whatever order, the agent serves it to
// the end of the connection, and ends.
func FuzzServer(f *testing.F) {
	frame := func(typ wire.Type, channel, stream byte, payload string) string {
		return string([]byte{byte(typ), channel, stream, byte(len(payload))}) + payload
	}
	hello := frame(wire.Hello, 0, 0, fmt.Sprintf(`{"session": "a", "version": %d, "try": 1}`, wire.Version))
	start := frame(wire.Start, 0, 0, `{"received": 0}`)
	adopt := frame(wire.Open, 0, 1, "adopt\x00{\"job\": \"j\", \"stdout\": -1}\x00body")
	f.Add([]byte(hello + start + adopt + frame(wire.Data, wire.Stdin, 1, "x") + frame(wire.Cancel, 0, 1, "")))
	f.Add([]byte(start + adopt + hello + frame(wire.Hello, 0, 0, "[]") + frame(wire.Ping, 0, 9, "")))
	f.Add([]byte(hello + frame(wire.Start, 0, 0, `{"received": 77}`) + hello + start + frame(wire.Result, 0, 1, "{}")))
	f.Add([]byte(hello + start + frame(wire.Open, 0, 1, "exec\x00") + frame(wire.Signal, 255, 1, "") + frame(wire.Credit, 0, 1, "\xff\xff\xff\xff")))
	f.Add([]byte(hello + start + frame(200, 0, 0, "") + frame(wire.Preamble, 0, 0, "") + hello + start + adopt))
	var preamble bytes.Buffer
	w := wire.NewWriter(&preamble)
	w.Restart(wire.Frame{Type: wire.Ping})
	w.Close()
	f.Fuzz(func(t *testing.T, script []byte) {
		stream := slices.Clone(preamble.Bytes())
		for seq := uint32(1); len(script) >= 4; {
			n := min(int(script[3]), len(script)-4)
			f := wire.Frame{Type: wire.Type(script[0]), Channel: script[1], Stream: uint32(script[2]), Payload: script[4 : 4+n]}
			if f.Type >= wire.Open {
				f.Seq, seq = seq, seq+1
			}
			if f.Type == wire.Preamble {
				stream = append(stream, preamble.Bytes()...)
			} else {
				stream = wire.AppendFrame(stream, f)
			}
			script = script[4+n:]
		}
		s := Server{Stage: idle{}}
		if err := s.Serve(t.Context(), scripted{bytes.NewReader(stream), io.Discard}); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("got %v", err)
		}
		s.Close()
	})
}
