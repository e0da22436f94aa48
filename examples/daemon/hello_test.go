// Package daemon shows how a program that changes is tested in a lab that stands: run it
// with
//
//	go test -v ./examples/daemon
package daemon

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attest-vm/attest"
)

// edit writes the daemon's source with another greeting to a directory.
func edit(t *testing.T, dir, greeting string) {
	t.Helper()
	source, err := os.ReadFile("hello/main.go")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(source), `"Hello"`, `"`+greeting+`"`, 1)
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func build(t *testing.T, dir, to string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-o", to, "main.go")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
}

func greeting(server *attest.TestMachine) string {
	server.Spawn("/opt/hello")
	server.WaitForOpenPort(8080)
	return server.Succeed("cat < /dev/tcp/localhost/8080")
}

func TestEachBuildInALabThatStands(t *testing.T) {
	source, program := t.TempDir(), filepath.Join(t.TempDir(), "hello")
	edit(t, source, "Hello")
	build(t, source, program)
	lab := attest.New(t, attest.MachineConfig{
		Name: "server", Image: attest.Debian{}, Memory: 256,
		Mount: map[string]string{"/opt/hello": program},
	})
	lab.Machine("server").WaitForUnit("multi-user.target")
	state := lab.Snapshot() // before the daemon was started

	for _, want := range []string{"Hello", "Goodbye"} {
		t.Run(want, func(t *testing.T) {
			edit(t, source, want)
			build(t, source, program)
			fork := state.Fork(t) // gets the program as it is now
			if got := greeting(fork.Machine("server")); !strings.HasPrefix(got, want+", ") {
				t.Errorf("got %q", got)
			}
		})
	}
}
