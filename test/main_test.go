// Package test holds attest's end-to-end tests: the attest command and the Go
// API as people use them, on real guests.
//
// The scripts in testdata (TestScripts) are also the command line's
// documentation by example: each says what it shows. What a script cannot do,
// such as killing attest in the middle of something, is in Go.
//
// They use the user's image cache; the first run fills it. Every test has a
// state directory of its own and must leave nothing behind: no process, socket,
// mount or file. Run one with
//
//	go test ./test -run TestScripts/kernel_panic -v
package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/boot"
	"github.com/attest-vm/attest/internal/vmm/firecracker/fake"
)

// attestBinary is the attest that is tested; it is on the PATH, too. agentBinary
// is what its guests run.
var attestBinary, agentBinary string

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	fake.Main() // this binary is the VMM of TestNixTAP, too
	if victim := os.Getenv(victimEnv); victim != "" {
		return m.Run(), nil // everything is there already
	}
	dir, err := os.MkdirTemp("", "attest-test")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	attestBinary = filepath.Join(dir, "attest")
	build := exec.Command("../scripts/build", attestBinary)
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build attest: %w\n%s", err, out)
	}
	agentBinary = attestBinary + "-agent"
	os.Setenv(boot.BinaryEnv, agentBinary)
	os.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	// For the tests that use the Go API in this process.
	state, err := os.MkdirTemp("/tmp", "at")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(state)
	os.Setenv("ATTEST_STATE_DIR", state)
	code := m.Run()
	if left := leftovers(state); len(left) > 0 {
		return 1, fmt.Errorf("this is left behind:\n%s", strings.Join(left, "\n"))
	}
	return code, nil
}
