package starlark

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/script"
)

// What a machine cannot do is refused before anything boots.
func TestUnsupportedOperations(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.star")
	text := `
m = machine(image = debian(), type = "microvm")
s = machine(image = debian())
f = machine(start_command = "run-f-vm")

def main():
    m.send_key("a")
    s.screenshot("x")
    s.send_key("a")
    f.screenshot("x")
    f.send_key("a")
`
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := Load(t.Context(), path, script.Options{})
	if err == nil {
		t.Fatal("it loads")
	}
	for _, want := range []string{
		`:7:7: m: send_key is not supported by backend qemu: the machine type microvm has no keyboard`,
		`:8:7: s: screenshot is not supported by backend qemu: the machine has no screen; give it one with display=True`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nlacks %s", err, want)
		}
	}
	if s := attest.StatusOf(err); s != attest.Invalid && s != attest.Unsupported {
		t.Errorf("status %s", s)
	}
}
