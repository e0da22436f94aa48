package test

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/boot"
)

// nixGuests is a Nix that has built attest, and whose machines are Debian guests with the
// instrumentation's units and that attest's agent.
func nixGuests(t *testing.T, image attest.Debian) *nixHost {
	needNix(t)
	nix := newNix(t)
	delete(nix.arguments, "attestDir")
	nix.withGo()
	agent := filepath.Join(nix.build("agent")[0], "bin/attest-agent")
	nix.arguments["startScript"] = newForeignGuestOf(t, nix.withVsock(nix.instrumented(image, agent))).text("nix", "", "@CARDS@")
	return nix
}

// withVsock is the image with the root shell that machines on microVMs have.
func (n *nixHost) withVsock(image attest.Debian) attest.Debian {
	n.t.Helper()
	text, err := os.ReadFile(n.build("vsock")[0])
	if err != nil {
		n.t.Fatal(err)
	}
	var u nixUnit
	if err := json.Unmarshal(text, &u); err != nil {
		n.t.Fatal(err)
	}
	command, program, ok := strings.Cut(fmt.Sprint(u.ServiceConfig["ExecStart"]), "EXEC:")
	shell, err := os.ReadFile(program)
	if !ok || err != nil {
		n.t.Fatalf("no program in %q: %v", command, err)
	}
	u.ServiceConfig["ExecStart"] = command + "EXEC:/usr/local/lib/vsock-shell"
	image.Packages = append(slices.Clone(image.Packages), "socat")
	image.Files["/usr/local/lib/vsock-shell"] = attest.File{Mode: 0o755, Content: string(shell)}
	image.Files["/etc/systemd/system/vsock-backdoor.service"] = attest.File{Content: u.text("vsock-backdoor")}
	image.Run = append(image.Run, "systemctl enable vsock-backdoor.service")
	return image
}

// TestNixChecks has Nix build what the flake checks: on QEMU the tests themselves, and of all, the
// examples too, the drivers, which checks their scripts.
func TestNixChecks(t *testing.T) {
	image := foreignImage
	// As on NixOS.
	image.Run = append(slices.Clone(image.Run), "systemctl add-wants multi-user.target network.target")
	nix := nixGuests(t, image)
	for attribute, want := range map[string]int{"drivers": 13 + 10, "onQEMU": 5} {
		built := nix.build(attribute)
		if len(built) != want {
			t.Errorf("%s: %d are built, want %d", attribute, len(built), want)
		}
		for _, path := range built {
			name := map[string]string{"drivers": "bin/attest-driver", "onQEMU": "junit.xml"}[attribute]
			if _, err := os.Stat(filepath.Join(path, name)); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestNixDriver has Nix build snapshots of two guests, and the drivers of tests that go on from
// these, for a person. Statements come over a pipe here. And it has Nix measure.
func TestNixDriver(t *testing.T) {
	nix := nixGuests(t, foreignImage)
	began := map[string]bool{} // when the server's systemd did
	const userspace = `print("began", server.succeed("systemctl show -P UserspaceTimestampMonotonic"))` + "\n"
	// As its VMM does for a machine on a microVM, the guest connects to its own vsock.
	const vsock = `print(server.succeed("modprobe vsock_loopback; printf 'echo I am $USER in $PWD\\nexit\\n' | socat -,ignoreeof VSOCK-CONNECT:1:1234"))` + "\n"
	for language, tt := range map[string]struct {
		typed string
		want  []string // of its output, in this order
	}{
		"python": {vsock + "print(server.succeed('hostname; ip -brief address show eth0'))\nserver.succeed('test -e /none')\nclient.wait_until_succeeds('ping -c 1 -w 2 server')\nprint('the end')\n",
			[]string{"run the VM test script", "the script has run", "Spawning backdoor root shell...\nI am root in /tmp\n", "192.168.1.2/24", "command `test -e /none` failed", "the end"}},
		"starlark": {"test_name()\nserver.succeed('ip -brief address show eth0')\nclient.wait_until_succeeds('ping -c 1 -w 2 server').isdigit()\n",
			[]string{"the lab is set up", "the test has passed", "192.168.1.2/24", "False"}},
	} {
		driver := nix.build("prompts." + language)[0]
		state, err := os.MkdirTemp("/tmp", "at")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(state) })
		out := t.TempDir()
		p := start(t, state, []string{boot.BinaryEnv + "=", "HOME=" + out, "XDG_CACHE_HOME=" + out}, filepath.Join(driver, "bin/attest-driver"))
		if _, err := io.WriteString(p.stdin, userspace+tt.typed); err != nil {
			t.Fatal(err)
		}
		p.stdin.Close()
		if code := p.exitCodeWithin(t, 10*time.Minute); code != 0 {
			t.Errorf("%s: exit code %d", language, code)
		}
		said := p.said()
		for _, want := range tt.want {
			_, after, found := strings.Cut(said, want)
			if !found {
				t.Errorf("%s: there is no %q, or not in its place", language, want)
			}
			said = after
		}
		began[regexp.MustCompile(`began \d+`).FindString(p.said())] = true
		if left := leftovers(state); len(left) > 0 {
			t.Errorf("%s: this is left behind:\n%s", language, strings.Join(left, "\n"))
		}
	}

	if len(began) != 1 || began[""] {
		t.Errorf("the server has booted more than once: %v", slices.Collect(maps.Keys(began)))
	}

	measured := nix.build("bench")[0]
	for name, columns := range map[string][]string{
		"summary.tsv": {"boot", "main/multi-user.target", "main/exec", "total"},
		"phases.tsv":  {"machine\tready"},
	} {
		text, err := os.ReadFile(filepath.Join(measured, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, column := range columns {
			if !regexp.MustCompile(`(?m)^qemu\t` + column + `\t\d+(\t3600000\tok)?$`).Match(text) {
				t.Errorf("%s has no %q:\n%s", name, column, text)
			}
		}
		t.Logf("%s:\n%s", name, text)
	}
}
