package mock

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/vmm"
)

func TestScriptErrors(t *testing.T) {
	for _, test := range []struct{ script, want string }{
		{`[]`, "want an object"},
		{`{"answer": []}`, "/answer: unknown key; known keys are answers, console, dead, delay, files, monitor, ports, restore_error, save_error, silent, sockets, start_error, units, without"},
		{`{"answers": {}}`, "/answers: want an array"},
		{`{"answers": [{"command": "x"}, {"command": "a", "exit-code": 1}]}`, "/answers/1/exit-code: unknown key; known keys are command, console, delay, end, exit_code, match, stderr, stdout, times, units"},
		{`{"answers": [{"command": "x", "exit_code": "1"}]}`, "/answers/0/exit_code: want whole number, not a JSON string"},
		{`{"answers": [{"stdout": "x"}]}`, `/answers/0: want either "command" or "match"`},
		{`{"answers": [{"command": "x", "match": "x"}]}`, `/answers/0: want either "command" or "match"`},
		{`{"answers": [{"match": "("}]}`, "/answers/0: \"match\" is not a regular expression: error parsing regexp: missing closing ): `^(?s:()$`"},
		{`{"answers": [{"command": "x", "exit_code": 256}]}`, `/answers/0: "exit_code" 256: want 0 to 255`},
		{`{"answers": [{"command": "x", "end": "off"}]}`, `/answers/0: "end" "off": want one of powered off, reset, panicked, failed, hang`},
		{`{"answers": [{"command": "x", "delay": "soon"}]}`, `/answers/0/delay: want a number of seconds or a string such as "200ms", from 0 on, not "soon"`},
		{`{"delay": -1}`, `/delay: want a number of seconds or a string such as "200ms", from 0 on, not -1`},
		{`{"files": {"../x": ""}}`, `/files: "../x": want the absolute path of a file`},
		{`{"files": {"/a": 1}}`, `/files: want an object of strings, not a JSON number`},
		{`{"sockets": ["run/x"]}`, `/sockets/0: "run/x": want the absolute path of a socket`},
		{`{"ports": [0]}`, "/ports/0: port 0: want 1 to 65535"},
		{`{"without": ["saving", "mouse"]}`, `/without/1: "mouse": want some of saving, pausing, reset, power, nmi, sleep, crashing, links, keyboard, pointer, screen, input, monitor, events, buttons, devices, control, all`},
		{`{"silent": 1}`, "/silent: want true or false, not a JSON number"},
	} {
		_, err := ParseScript([]byte(test.script))
		var scriptError *ScriptError
		if !errors.As(err, &scriptError) || err.Error() != test.want {
			t.Errorf("%s:\n got %v\nwant %s", test.script, err, test.want)
		}
	}
}

func FuzzParseScript(f *testing.F) {
	f.Add([]byte(`{"answers": [{"match": "a.*", "delay": 1.5, "end": "hang"}], "files": {"/a": "b"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := ParseScript(data); (s == nil) == (err == nil) {
			t.Fatalf("got %v and %v", s, err)
		}
	})
}

// A script takes away what its VMM can do, and Offers says so before anything starts.
func TestScriptWithout(t *testing.T) {
	all, err := json.Marshal(everyGroup)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		without             string
		save, keys, monitor bool // saving, keys, the monitor
	}{
		{`["saving"]`, false, true, true}, {`["devices"]`, true, false, true}, {`["control"]`, true, true, false}, {`["keyboard", "saving"]`, false, false, true}, {string(all), false, false, false}, {`["all"]`, false, false, false}, {`[]`, true, true, true},
	} {
		c := vmm.Config{Dir: t.TempDir(), Boot: &vmm.Mock{Script: []byte(`{"console": "", "without": ` + tt.without + `}`)}}
		m := start(t, Options{}, c)
		_, save := vmm.As[vmm.Snapshotter](m.vm)
		_, keys := vmm.As[vmm.Keyboarder](m.vm)
		_, monitor := vmm.As[vmm.Monitor](m.vm)
		if save != tt.save || keys != tt.keys || monitor != tt.monitor {
			t.Errorf("without %s: saving %v, keys %v, monitor %v", tt.without, save, keys, monitor)
		}
		ok, lack := New(Options{}).(vmm.Offerer).Offers(c, vmm.CanType)
		if ok != tt.keys || !ok && !strings.Contains(lack.Reason, "its script says so") {
			t.Errorf("without %s: Offers says %v, %v", tt.without, ok, lack)
		}
		if ok, lack := New(Options{}).(vmm.Offerer).Offers(c, vmm.CanPlug); ok || lack.Reason != "" {
			t.Errorf("without %s: no mock has disks, and Offers says %v, %v", tt.without, ok, lack)
		}
	}
}

const script = `{
	"console": "Welcome\n",
	"answers": [
		{"command": "uname -r", "stdout": "6.1.0\n"},
		{"command": "flaky", "times": 2, "exit_code": 7, "stderr": "not yet\n"},
		{"command": "flaky", "stdout": "now\n"},
		{"match": "sleep \\d+", "delay": 3600},
		{"match": "cat .*\nsecond", "stdout": "two lines"},
		{"command": "systemctl start web", "units": {"web.service": "active"}, "console": "Started web\n"},
		{"command": "explode", "end": "panicked"},
		{"command": "stop answering", "end": "hang"},
		{"command": "halt", "end": "powered off"},
		{"command": "abort", "end": "failed"}
	],
	"units": {"db.service": "active", "web.service": "activating", "bad.service": "failed"},
	"ports": [80],
	"sockets": ["/run/web"],
	"files": {"/etc/motd": "hello\n"},
	"monitor": {"info status": "VM status: running"}
}`

func startScript(t *testing.T) *started {
	return start(t, Options{}, vmm.Config{Dir: t.TempDir(), Boot: &vmm.Mock{Script: []byte(script)}})
}

func TestAnswers(t *testing.T) {
	s := startScript(t)
	for _, test := range []struct{ command, want string }{
		{"uname -r", `0 "6.1.0\n" "" <nil>`},
		{"uname -rr", `127 "" "mock: there is no canned answer for \"uname -rr\"\n" <nil>`},
		{"flaky", `7 "" "not yet\n" <nil>`},
		{"flaky", `7 "" "not yet\n" <nil>`},
		{"flaky", `0 "now\n" "" <nil>`},
		{"flaky", `0 "now\n" "" <nil>`},
		{"cat a\nsecond", `0 "two lines" "" <nil>`},
	} {
		if got := s.run(t, test.command); got != test.want {
			t.Errorf("%s: got %s, want %s", test.command, got, test.want)
		}
	}
	ctx := testContext(t)
	r, err := s.client.Run(ctx, guest.Command{Argv: []string{"sleep", "5"}, Timeout: 20 * time.Millisecond})
	if err != nil || !r.TimedOut || r.ExitCode != exitTimeout {
		t.Errorf("a command that takes too long: %+v, %v", r, err)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := s.client.Run(short, guest.Command{Script: "sleep 9"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a command that is given up: %v", err)
	}
	if got, err := s.MonitorCommand(ctx, "info status"); got != "VM status: running" || err != nil {
		t.Errorf("the monitor says %q, %v", got, err)
	}
}

func TestUntil(t *testing.T) {
	s := startScript(t)
	r, err := s.client.RunUntil(testContext(t), guest.Command{Script: "flaky"}, guest.UntilOptions{Timeout: patience})
	if err != nil || !r.Met || r.Tries != 3 || string(r.Stdout) != "now\n" || len(r.Stderr) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	r, err = s.client.RunUntil(testContext(t), guest.Command{Script: "nonsense"}, guest.UntilOptions{Timeout: 20 * time.Millisecond})
	if err != nil || r.Met || r.ExitCode != notFound {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestCannedWaits(t *testing.T) {
	s := startScript(t)
	ctx := testContext(t)
	if _, err := s.client.WaitUnit(ctx, "db.service", "", false); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]string{"bad": `reached state "failed"`, "missing.service": `its load state is "not-found"`} {
		var hopeless *guest.UnitError
		if _, err := s.client.WaitUnit(ctx, name, "", false); !errors.As(err, &hopeless) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", name, err, want)
		}
	}
	if _, err := s.client.WaitUnit(ctx, "web.service", "", true); !errors.Is(err, guest.ErrNotYet) {
		t.Errorf("one look: %v", err)
	}
	active := make(chan error, 1)
	go func() {
		_, err := s.client.WaitUnit(ctx, "web.service", "", false)
		active <- err
	}()
	s.run(t, "systemctl start web")
	if err := <-active; err != nil {
		t.Error(err)
	}
	if _, err := s.client.WaitPort(ctx, "localhost", 80, "", true, false); err != nil {
		t.Error(err)
	}
	if seen, err := s.client.WaitPort(ctx, "localhost", 81, "", true, true); !errors.Is(err, guest.ErrNotYet) || seen.Seen != "port 81 is not in the script" {
		t.Errorf("%+v, %v", seen, err)
	}
	if _, err := s.client.WaitUnixSocket(ctx, "/run/web", false, false); err != nil {
		t.Error(err)
	}
	if seen, err := s.client.WaitUnixSocket(ctx, "/none", false, true); !errors.Is(err, guest.ErrNotYet) || seen.Seen != "socket /none is not in the script" {
		t.Errorf("%+v, %v", seen, err)
	}
	if _, err := s.client.WaitTTY(ctx, 1, "login"); err == nil || !strings.Contains(err.Error(), `a machine with canned answers cannot do "wait-tty"`) {
		t.Errorf("%v", err)
	}
}

// Files are copied in and out, and stay in the machine's directory.
func TestCannedFiles(t *testing.T) {
	s := startScript(t)
	ctx := testContext(t)
	here := t.TempDir()
	root, err := os.OpenRoot(here)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := os.WriteFile(filepath.Join(here, "in"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.CopyIn(ctx, filepath.Join(here, "in"), "/srv/deep/file"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.WaitFile(ctx, "/srv/deep/file", false); err != nil {
		t.Error(err)
	}
	for from, want := range map[string]string{"/srv/deep/file": "content", "/etc/motd": "hello\n"} {
		if _, err := s.client.CopyOut(ctx, from, root); err != nil {
			t.Error(err)
		}
		if got, err := os.ReadFile(filepath.Join(here, filepath.Base(from))); string(got) != want || err != nil {
			t.Errorf("%s: %q, %v", from, got, err)
		}
	}
	// A link of the test's that leads outside is not followed.
	if err := os.Symlink(here, filepath.Join(here, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(here, filepath.Join(s.config.Dir, filesDir, "out")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.CopyIn(ctx, filepath.Join(here, "in"), "/out/written"); err == nil {
		t.Error("a link led out of the machine")
	}
	if _, err := os.Stat(filepath.Join(here, "written")); err == nil {
		t.Error("a file was written outside")
	}
}

func TestScriptedEnds(t *testing.T) {
	for command, want := range map[string]vmm.ExitReason{"explode": vmm.Panicked, "halt": vmm.PoweredOff, "abort": vmm.Broken} {
		s := startScript(t)
		s.ready(t)
		over := make(chan struct{})
		go func() {
			defer close(over)
			s.client.Run(testContext(t), guest.Command{Script: command})
		}()
		if exit := s.ended(t); exit.Reason != want {
			t.Errorf("%s: %+v", command, exit)
		}
		s.client.Close(nil)
		<-over
	}
	s := startScript(t)
	s.ready(t)
	short, cancel := context.WithTimeout(testContext(t), 50*time.Millisecond)
	defer cancel()
	if _, err := s.client.Run(short, guest.Command{Script: "stop answering"}); err == nil {
		t.Error("it answers")
	}
}

// What a script has given, and the files, are there again.
func TestScriptRestored(t *testing.T) {
	s := startScript(t)
	ctx := testContext(t)
	s.run(t, "flaky")
	s.run(t, "systemctl start web")
	file := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(file, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.CopyIn(ctx, file, "/srv/file"); err != nil {
		t.Fatal(err)
	}
	state, err := save(t, s)
	if err != nil {
		t.Fatal(err)
	}
	again := start(t, Options{}, vmm.Config{Dir: t.TempDir(), Boot: &vmm.Mock{Script: []byte(script)}, Restore: state})
	if got := again.run(t, "flaky") + again.run(t, "flaky"); got != `7 "" "not yet\n" <nil>0 "now\n" "" <nil>` {
		t.Errorf("it goes on with %s", got)
	}
	if _, err := again.client.WaitUnit(ctx, "web.service", "", true); err != nil {
		t.Error(err)
	}
	if _, err := again.client.WaitFile(ctx, "/srv/file", true); err != nil {
		t.Error(err)
	}
}
