package boot

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
)

func TestGuestBinaryFromEnvironment(t *testing.T) {
	static := buildProgram(t, "./testdata/hello")
	t.Setenv(BinaryEnv, static)
	if got, err := GuestBinary(t.Context(), nil); err != nil || got != static {
		t.Errorf("got %s, %v; want %s", got, err, static)
	}
	for path, want := range map[string]string{
		"/nowhere": "ATTEST_BINARY", "/bin/sh": "CGO_ENABLED=0", "/etc/passwd": "not an attest binary",
	} {
		t.Setenv(BinaryEnv, path)
		if _, err := GuestBinary(t.Context(), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", path, err, want)
		}
	}
}

func TestGuestBinaryWithoutGo(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := buildGuestBinary(t.Context(), t.TempDir(), &debug.BuildInfo{}, nil)
	if err == nil || !strings.Contains(err.Error(), "no go command") || !strings.Contains(err.Error(), BinaryEnv) {
		t.Errorf("error %v does not say what to do", err)
	}
}

func TestGuestBinaryOutsideOfModules(t *testing.T) {
	t.Chdir(t.TempDir())
	_, err := buildGuestBinary(t.Context(), t.TempDir(), &debug.BuildInfo{}, nil)
	if err == nil || !strings.Contains(err.Error(), "not in a Go module") {
		t.Errorf("error %v", err)
	}
}

// userModule is a module that requires an attest with a cmd/attest-agent of
// one line, as a directory, and that has files of its own which must stay as they are.
func userModule(t *testing.T) string {
	return writeTree(t, map[string][]byte{
		"go.mod":                          []byte("module example.com/user\n\ngo 1.26\n\nrequire " + modulePath + " v0.0.0\n\nreplace " + modulePath + " => ./attest\n"),
		"user.go":                         []byte("package user\n"),
		"sub/sub.go":                      []byte("package sub\n"),
		"attest/go.mod":                   []byte("module " + modulePath + "\n\ngo 1.26\n"),
		"attest/cmd/attest-agent/main.go": []byte("package main\n\nfunc main() { println(\"attest\") }\n"),
	})
}

// In go test the working directory is the package's. Several processes of one
// run ask at the same time.
func TestGuestBinaryIsBuilt(t *testing.T) {
	root := userModule(t)
	t.Chdir(filepath.Join(root, "sub"))
	t.Setenv("GOFLAGS", "")
	before, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	cache := t.TempDir()

	var paths [3]string
	var errs [3]error
	var wg sync.WaitGroup
	for i := range paths {
		wg.Go(func() { paths[i], errs[i] = buildGuestBinary(t.Context(), cache, &debug.BuildInfo{}, nil) })
	}
	wg.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	if paths[1] != paths[0] || paths[2] != paths[0] {
		t.Errorf("three paths: %v", paths)
	}
	out, err := exec.Command(paths[0]).CombinedOutput()
	if err != nil || string(out) != "attest\n" {
		t.Errorf("what was built says %q, %v", out, err)
	}
	if after, err := os.ReadFile(filepath.Join(root, "go.mod")); err != nil || string(after) != string(before) {
		t.Errorf("go.mod was changed: %s, %v", after, err)
	}
	if _, err := os.Stat(filepath.Join(root, "go.sum")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a go.sum was made: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(cache, scratchPrefix+"*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}

	// Nothing changed: the file stays, and so does what was made of it.
	first, err := os.Stat(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := buildGuestBinary(t.Context(), cache, &debug.BuildInfo{}, nil); err != nil {
		t.Fatal(err)
	}
	if again, err := os.Stat(paths[0]); err != nil || !os.SameFile(first, again) {
		t.Errorf("the same binary was replaced: %v", err)
	}
}

// A version that is a release needs no go command once it is built.
func TestGuestBinaryOfARelease(t *testing.T) {
	info := &debug.BuildInfo{Deps: []*debug.Module{{Path: modulePath, Version: "v1.2.3", Sum: "h1:x"}}}
	cache := t.TempDir()
	t.Chdir(userModule(t))
	t.Setenv("GOFLAGS", "")
	first, err := buildGuestBinary(t.Context(), cache, info, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", t.TempDir())
	again, err := buildGuestBinary(t.Context(), cache, info, nil)
	if err != nil || again != first {
		t.Errorf("%s, %v; want %s", again, err, first)
	}
}

// It is written once, and again when something else is there.
func TestGuestBinaryIsUnpacked(t *testing.T) {
	cache := t.TempDir()
	program := []byte("#!/bin/sh\necho agent\n")
	path, err := unpackGuestBinary(cache, program, nil)
	if err != nil {
		t.Fatal(err)
	}
	first, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unpackGuestBinary(cache, program, nil); err != nil {
		t.Fatal(err)
	}
	if again, err := os.Stat(path); err != nil || !os.SameFile(first, again) {
		t.Errorf("the same binary was replaced: %v", err)
	}
	if err := os.WriteFile(path, program[:5], 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := unpackGuestBinary(cache, program, nil); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(path).Output(); err != nil || string(out) != "agent\n" {
		t.Errorf("what was unpacked says %q, %v", out, err)
	}
}

func TestGuestBinaryBuildError(t *testing.T) {
	root := userModule(t)
	if err := os.WriteFile(filepath.Join(root, "attest/cmd/attest-agent/main.go"), []byte("package main\n\nfunc main() { nonsense }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Chdir(root)
	t.Setenv("GOFLAGS", "")
	_, err := buildGuestBinary(t.Context(), t.TempDir(), &debug.BuildInfo{}, nil)
	if err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("error %v does not have the compiler's message", err)
	}
}

func TestBuildKey(t *testing.T) {
	for name, c := range map[string]struct {
		info  debug.BuildInfo
		fixed bool
	}{
		"attest's own tests": {debug.BuildInfo{Main: debug.Module{Path: modulePath}}, false},
		"a release":          {debug.BuildInfo{Deps: []*debug.Module{{Path: modulePath, Version: "v1.0.0", Sum: "h1:x"}}}, true},
		"a directory":        {debug.BuildInfo{Deps: []*debug.Module{{Path: modulePath, Replace: &debug.Module{Path: "../attest"}}}}, false},
		"a fork":             {debug.BuildInfo{Deps: []*debug.Module{{Path: modulePath, Replace: &debug.Module{Path: "example.com/fork", Version: "v1.0.0", Sum: "h1:y"}}}}, true},
	} {
		if _, fixed := buildKey(&c.info); fixed != c.fixed {
			t.Errorf("%s: fixed %v, want %v", name, fixed, c.fixed)
		}
	}
}
