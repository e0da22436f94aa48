package python

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/script"
)

// What a machine cannot do is refused before anything boots, and what it can do is not.
func TestUnsupportedOperations(t *testing.T) {
	mock := func(name, without string) attest.MachineConfig {
		return attest.MachineConfig{Name: name, Backend: "mock", MockScript: fmt.Appendf(nil, `{"without": [%s]}`, without)}
	}
	declared := "web = machine(image=debian(), type='microvm')\ndb = machine(name='b-1', image=debian(), display=True)\n"
	for name, tt := range map[string]struct {
		machines []attest.MachineConfig
		source   string
		line     int    // 0: it loads
		want     string // in the error
		status   attest.Status
	}{
		"a script":         {[]attest.MachineConfig{mock("web", `"keyboard"`), mock("b-1", "")}, "b_1.send_key('a')\ndef f():\n    web.send_key('a')\n", 3, "web: send_key is not supported by backend mock", attest.Unsupported},
		"all of it":        {[]attest.MachineConfig{mock("web", `"all"`)}, "web.pause()\nmachine.snapshot_create('x')\n", 1, "a.py:2:9: web: snapshot_create is not supported by backend mock", attest.Unsupported},
		"and a misspelt":   {[]attest.MachineConfig{mock("web", `"keyboard"`)}, "web.send_key('a')\nweb.sucede('a')\n", 2, "did you mean succeed", attest.Invalid},
		"its declarations": {nil, declared + "def test_a():\n    db.send_key('a')\n    web.send_key('a')\n", 5, "web: send_key is not supported by backend qemu: the machine type microvm has no keyboard", attest.Unsupported},
		"with a name":      {nil, "m = machine(name='b-1', backend='mock')\ndef test_a():\n    m.succeed('true')\n    m.screenshot('x')\n", 4, "b-1: screenshot is not supported by backend mock", attest.Unsupported},
		"misspelt":         {nil, declared + "def test_a():\n    web.sucede('a')\n", 4, "a machine has no operation sucede; did you mean succeed?", attest.Invalid},
		"caught":           {[]attest.MachineConfig{mock("web", `"all"`)}, "try:\n    web.pause()\nexcept Exception:\n    pass\nwith t.assertRaises(Exception):\n    web.pause()\n", 0, "", ""},
		"not certain":      {[]attest.MachineConfig{mock("web", `"all"`)}, "for web in []:\n    web.pause()\n", 0, "", ""},
		"assigned again":   {nil, declared + "def test_a():\n    web = db\n    web.send_key('a')\n", 0, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "a.py")
			if err := os.WriteFile(path, []byte(tt.source), 0o644); err != nil {
				t.Fatal(err)
			}
			_, err := script.Load(t.Context(), path, script.Options{Machines: tt.machines})
			if tt.line == 0 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var at *script.Error
			if !errors.As(err, &at) || at.Position.Line != tt.line || !strings.Contains(err.Error(), tt.want) || attest.StatusOf(err) != tt.status {
				t.Errorf("got %v (%s)\nwant line %d, %s: %s", err, attest.StatusOf(err), tt.line, tt.status, tt.want)
			}
		})
	}
}

// What a script calls backends is its own affair; what a test file does is attest's.
func TestBackendsOfScripts(t *testing.T) {
	for text, want := range map[string]string{
		"backends = ['web1', 'web2']\nfor b in backends:\n    machine.succeed(b)\n":                   "",
		"backends = ['qemu', 'mock']\nlb.succeed('true')\n":                                           "",
		"backends = ['web1']\nx = create_machine('run-x-vm')\ny = driver.machine('y')\n# machine()\n": "",
		"backends = ['qemu', 'mock']\nm = machine(image=debian())\n":                                  "qemu,mock",
		"backends = ['qemu', 'mock']\nif True:\n    m = [machine(image=debian())]\n":                  "qemu,mock",
		"backends = ['qmu']\nmachine(name='m')\n":                                                     `unknown backend "qmu"`,
	} {
		path := filepath.Join(t.TempDir(), "a.py")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		names, err := script.Backends(path, "")
		got := strings.Join(names, ",")
		if err != nil {
			got = err.Error()
		}
		if (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}
