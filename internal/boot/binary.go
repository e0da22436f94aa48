package boot

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"debug/elf"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/attest-vm/attest/internal/flock"
)

const (
	modulePath  = "github.com/attest-vm/attest"
	commandPath = modulePath + "/cmd/attest"
	agentPath   = modulePath + "/cmd/attest-agent"

	// BinaryEnv is the environment variable that names the executable for guests.
	BinaryEnv = "ATTEST_BINARY"
)

// embedded is cmd/attest-agent, if scripts/build has put it in the place of the
// empty file (go build -overlay).
//
//go:embed attest-agent
var embedded []byte

// GuestBinary is the executable that guests run as /init and as agent. Of the
// attest command it is the cmd/attest-agent that it contains, or, built without
// one, itself. Of a test binary it is what ATTEST_BINARY names, or cmd/attest-agent
// of the version of attest that the test's module requires, built with the go
// command. Both are kept in the user's cache. owner, which may be nil, has what is not
// finished.
func GuestBinary(ctx context.Context, owner Owner) (string, error) {
	info, _ := debug.ReadBuildInfo()
	if info == nil {
		info = &debug.BuildInfo{}
	}
	if info.Path == commandPath && len(embedded) > 0 {
		dir, err := cacheDir("guest")
		if err != nil {
			return "", err
		}
		return unpackGuestBinary(dir, embedded, owner)
	}
	if info.Path == commandPath {
		// Not os.Executable: its file may have been replaced since.
		if err := checkGuestBinary("/proc/self/exe"); err != nil {
			return "", fmt.Errorf("this attest cannot run in guests: %w", err)
		}
		return os.Executable()
	}
	if path := os.Getenv(BinaryEnv); path != "" {
		if err := checkGuestBinary(path); err != nil {
			return "", fmt.Errorf("%s: %w", BinaryEnv, err)
		}
		return filepath.Abs(path)
	}
	dir, err := cacheDir("guest")
	if err != nil {
		return "", err
	}
	return buildGuestBinary(ctx, dir, info, owner)
}

// checkGuestBinary refuses what cannot run in a guest's first file system.
func checkGuestBinary(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("not an attest binary: %w", err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is dynamically linked; build it with CGO_ENABLED=0", path)
		}
	}
	return nil
}

// unpackGuestBinary writes an executable below dir, once for each content.
func unpackGuestBinary(dir string, program []byte, owner Owner) (string, error) {
	own := filepath.Join(dir, fmt.Sprintf("%x", sha256.Sum256(program))[:32])
	path := filepath.Join(own, "attest-agent")
	if there, err := os.ReadFile(path); err == nil && bytes.Equal(there, program) {
		used(own)
		return path, nil
	}
	tmp, err := newScratch(dir, owner)
	if err != nil {
		return "", fmt.Errorf("unpack the agent for guests: %w", err)
	}
	defer tmp.remove()
	unpacked := filepath.Join(tmp.dir, "attest-agent")
	if err = os.WriteFile(unpacked, program, 0o755); err == nil {
		if err = os.MkdirAll(own, 0o755); err == nil {
			err = os.Rename(unpacked, path)
		}
	}
	if err != nil {
		return "", fmt.Errorf("unpack the agent for guests: %w", err)
	}
	pruneDir(dir)
	return path, nil
}

// buildGuestBinary builds cmd/attest-agent below dir, once for each version of attest.
func buildGuestBinary(ctx context.Context, cache string, info *debug.BuildInfo, owner Owner) (string, error) {
	key, fixed := buildKey(info)
	var module goModule
	if !fixed {
		// A checkout: the key is where it is, and go build finds out what changed.
		var err error
		if module, err = findModule(ctx); err != nil {
			return "", err
		}
		key = "dir\n" + module.Root
	}
	dir := filepath.Join(cache, fmt.Sprintf("%x", sha256.Sum256([]byte(key)))[:32])
	path := filepath.Join(dir, "attest-agent")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("build attest for guests: %w", err)
	}
	unlock, err := flock.File(ctx, filepath.Join(dir, "lock"), nil)
	if err != nil {
		return "", fmt.Errorf("build attest for guests: %w", err)
	}
	defer unlock()
	used(dir)
	pruneDir(cache)
	if fixed {
		if checkGuestBinary(path) == nil {
			return path, nil
		}
		if module, err = findModule(ctx); err != nil {
			return "", err
		}
	}
	tmp, err := newScratch(cache, owner)
	if err != nil {
		return "", fmt.Errorf("build attest for guests: %w", err)
	}
	defer tmp.remove()
	if err := module.build(ctx, tmp.dir, path); err != nil {
		return "", err
	}
	return path, nil
}

// buildKey names the attest that a test binary was built with, if its version
// says it all.
func buildKey(info *debug.BuildInfo) (key string, fixed bool) {
	for _, dep := range info.Deps {
		if dep.Path != modulePath {
			continue
		}
		if dep.Replace != nil {
			dep = dep.Replace
		}
		if dep.Sum != "" { // a directory has none
			return fmt.Sprintf("module\n%s\n%s\n%s\n%s", dep.Path, dep.Version, dep.Sum, runtime.GOARCH), true
		}
	}
	return "", false
}

// goModule is the main module around the working directory: in go test, the
// one whose package is tested.
type goModule struct {
	goTool string
	Root   string
	GoMod  string // its go.mod
	GoWork string // the workspace's go.work, if there is one
}

func findModule(ctx context.Context) (goModule, error) {
	goTool, err := exec.LookPath("go")
	if err != nil {
		return goModule{}, fmt.Errorf("guests need the attest binary, and there is no go command to build it (%w); install attest and set %s to its path", err, BinaryEnv)
	}
	out, err := runGo(ctx, goTool, "", "env", "-json", "GOMOD", "GOWORK")
	if err != nil {
		return goModule{}, err
	}
	var env struct{ GOMOD, GOWORK string }
	if err := json.Unmarshal(out, &env); err != nil {
		return goModule{}, fmt.Errorf("go env: %w", err)
	}
	if env.GOMOD == "" || env.GOMOD == os.DevNull {
		return goModule{}, fmt.Errorf("guests need the attest binary, and the working directory is not in a Go module to build it from; install attest and set %s to its path", BinaryEnv)
	}
	if env.GOWORK == "off" {
		env.GOWORK = ""
	}
	return goModule{goTool: goTool, Root: filepath.Dir(env.GOMOD), GoMod: env.GOMOD, GoWork: env.GOWORK}, nil
}

// build builds cmd/attest-agent in tmp, and replaces path at once when it is done.
// The module's go.mod and go.sum stay as they are: what the command needs
// beyond what the module's packages need is added to copies of them.
func (m goModule) build(ctx context.Context, tmp, path string) error {
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", filepath.Join(tmp, "attest-agent")}
	if m.GoWork == "" { // a workspace takes neither flag, and adds nothing by itself
		modfile := filepath.Join(tmp, "go.mod")
		if err := m.copyModFiles(tmp); err != nil {
			return fmt.Errorf("build attest for guests: %w", err)
		}
		args = append(args, "-mod=mod", "-modfile="+modfile)
	}
	if _, err := runGo(ctx, m.goTool, m.Root, append(args, agentPath)...); err != nil {
		return fmt.Errorf("build attest for guests in %s: %w", m.Root, err)
	}
	if err := checkGuestBinary(filepath.Join(tmp, "attest-agent")); err != nil {
		return fmt.Errorf("build attest for guests: %w", err)
	}
	if err := replaceIfChanged(filepath.Join(tmp, "attest-agent"), path); err != nil {
		return fmt.Errorf("build attest for guests: %w", err)
	}
	return nil
}

func (m goModule) copyModFiles(dir string) error {
	data, err := os.ReadFile(m.GoMod)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), data, 0o644); err != nil {
		return err
	}
	sum, err := os.ReadFile(strings.TrimSuffix(m.GoMod, ".mod") + ".sum")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "go.sum"), sum, 0o644)
}

// replaceIfChanged moves the file built to path, unless the same is there: what
// was made of a file that stays the same (an initramfs) stays good.
func replaceIfChanged(built, path string) error {
	after, err := os.ReadFile(built)
	if err != nil {
		return err
	}
	if before, err := os.ReadFile(path); err == nil && bytes.Equal(before, after) {
		return nil
	}
	return os.Rename(built, path)
}

// runGo runs the go command and returns its standard output; its messages are in the error.
func runGo(ctx context.Context, goTool, dir string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, goTool, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+runtime.GOARCH)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %s", args[0], cmp.Or(strings.TrimSpace(stderr.String()), err.Error()))
	}
	return out, nil
}
