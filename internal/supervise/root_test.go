package supervise

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestStateRoot(t *testing.T) {
	tmp := tempRoot(t)
	uid := strconv.Itoa(os.Geteuid())
	foreign := filepath.Join(tmp, "open")
	if err := os.Mkdir(foreign, 0o700); err != nil {
		t.Fatal(err)
	}
	os.Chmod(foreign, 0o777)
	for _, tt := range []struct{ name, state, run, want string }{
		{"explicit", tmp + "/x/y", tmp, tmp + "/x/y"},
		{"runtime directory", "", tmp, tmp + "/attest"},
		{"no runtime directory", "", "", tmp + "/attest-" + uid},
		{"runtime directory is missing", "", tmp + "/missing", tmp + "/attest-" + uid},
		{"runtime directory is not ours alone", "", foreign, tmp + "/attest-" + uid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("ATTEST_STATE_DIR", tt.state)
			t.Setenv("XDG_RUNTIME_DIR", tt.run)
			t.Setenv("TMPDIR", tmp)
			got, err := StateRoot()
			if err != nil || got != tt.want {
				t.Fatalf("got %s, %v; want %s", got, err, tt.want)
			}
			if fi, err := os.Lstat(got); err != nil || fi.Mode() != os.ModeDir|0o700 {
				t.Errorf("%v, %v", fi, err)
			}
		})
	}
}

// A directory for temporary files that does not exist is not made.
func TestMissingTmpDir(t *testing.T) {
	missing := filepath.Join(tempRoot(t), "missing")
	t.Setenv("ATTEST_STATE_DIR", "")
	t.Setenv("XDG_RUNTIME_DIR", "")
	t.Setenv("TMPDIR", missing)
	_, err := StateRoot()
	var none *NoParentError
	if !errors.As(err, &none) || none.Parent != missing || !strings.Contains(err.Error(), "set TMPDIR") {
		t.Errorf("got %v", err)
	}
	expectNoDir(t, missing)
}

func TestStateRootThatIsNotOurs(t *testing.T) {
	tmp := tempRoot(t)
	ofAnother := "/root" // for everybody but root
	if os.Geteuid() == 0 {
		ofAnother = filepath.Join(tmp, "of-another")
		if err := errors.Join(os.Mkdir(ofAnother, 0o700), os.Chown(ofAnother, 65534, 65534)); err != nil {
			t.Fatal(err)
		}
	}
	for name, plant := range map[string]func(path string) error{
		"symbolic link":     func(path string) error { return os.Symlink(tmp, path) },
		"file":              func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"open to everybody": func(path string) error { os.Mkdir(path, 0o700); return os.Chmod(path, 0o777) },
		"of another user":   nil,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(tmp, strings.ReplaceAll(name, " ", "-"))
			if plant == nil {
				path = ofAnother
			} else if err := plant(path); err != nil {
				t.Fatal(err)
			}
			t.Setenv("ATTEST_STATE_DIR", path)
			if _, err := StateRoot(); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "ATTEST_STATE_DIR") {
				t.Errorf("got %v", err)
			}
			if _, err := Start(t.Context(), Options{}); err == nil {
				t.Error("a supervisor starts in it")
			}
		})
	}
}

func TestStateRootThatIsTooLong(t *testing.T) {
	path := tempRoot(t) + "/" + strings.Repeat("x", 60)
	t.Setenv("ATTEST_STATE_DIR", path)
	_, err := StateRoot()
	var tooLong *PathTooLongError
	if !errors.As(err, &tooLong) || tooLong.Path != path {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{path, strconv.Itoa(len(path)), strconv.Itoa(tooLong.Limit), "set ATTEST_STATE_DIR"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %s", err, want)
		}
	}
	expectNoDir(t, path)
}

// TestLongestPathIsASocket holds the arithmetic to what the kernel says.
func TestLongestPathIsASocket(t *testing.T) {
	root := tempRoot(t)
	root += "/" + strings.Repeat("r", maxRoot-len(root)-1)
	machine := filepath.Join(root, newID(), strings.Repeat("m", maxMachineName))
	if err := os.MkdirAll(machine, 0o700); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	socket := filepath.Join(machine, strings.Repeat("s", maxSocketName))
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		t.Errorf("%s (%d bytes): %v", socket, len(socket), err)
	}
}

func TestIDs(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		id := newID()
		if !isID(id) {
			t.Fatalf("%q is no id", id)
		}
		seen[id] = true
	}
	if len(seen) < 990 {
		t.Errorf("%d different ones of 1000", len(seen))
	}
	for _, name := range []string{"", "abc", "abcdefg", "ABCDEF", "ab/def", "..abcd", "keep"} {
		if isID(name) {
			t.Errorf("%q is an id", name)
		}
	}
}
