package image

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/doctor"
	"github.com/attest-vm/attest/internal/event"
)

// What tools say, and whose fault it is then. The texts are those of
// mmdebstrap 1.3, apt 2.6 and dpkg 1.21; test/testdata/missing_package.txtar runs them.
func TestBlame(t *testing.T) {
	m := mmdebstrap{title: "debian:bookworm+x", run: []string{"true", "make install"}}
	for _, test := range []struct{ name, output, want string }{
		{"unknown package", "Reading package lists...\nE: Unable to locate package nginxx\nE: setup failed: E: command failed: #",
			`package: image debian:bookworm+x: package "nginxx": Unable to locate package nginxx`},
		{"no candidate", "E: Package 'mysql-server' has no installation candidate", `package: image debian:bookworm+x: package "mysql-server": Package 'mysql-server' has no`},
		{"no version", "E: Version '9*' for 'curl' was not found", `package: image debian:bookworm+x: package "curl": Version`},
		{"no kernel", "E: Package linux-doc contains no kernel", `package: image debian:bookworm+x: package "linux-doc"`},
		{"conflict", "The following packages have unmet dependencies:\n a : Conflicts: b\nE: Unable to correct problems, you have held broken packages.",
			"package: image debian:bookworm+x: the packages cannot be installed together"},
		{"run line", "attest: run 0\nattest: run 1\nmake: *** No rule to make target 'install'.\nattest: run 1 failed 2\nE: setup failed: E: command failed: #\nset -eu",
			"run: image debian:bookworm+x: run[1] \"make install\" failed with exit code 2\n  make: *** No rule to make target 'install'."},
		{"disk full", "dpkg: error processing archive x.deb (--unpack):\n cannot copy extracted data: failed to write (No space left on device)", "space: image cache "},
		{"apt's count", "E: You don't have enough free space in /var/cache/apt/archives/.", "space: image cache "},
		{"no network", "I: running apt-get update...\nErr:1 http://deb.example.org/debian bookworm InRelease\n  Temporary failure resolving 'deb.example.org'\nE: Failed to fetch http://deb.example.org/debian/dists/bookworm/InRelease",
			"build: image debian:bookworm+x: fetching package lists failed: Debian's mirror cannot be reached: temporary failure resolving"},
		{"no such release", "I: running apt-get update...\nErr:2 http://deb.example.org/debian nosuch Release\n  404  Not Found [IP: 203.0.113.80 80]\nE: The repository 'http://deb.example.org/debian nosuch Release' does not have a Release file.\nE: apt-get update --error-on=any failed",
			"spec: image: suite: http://deb.example.org/debian has no Debian release \"nosuch\"; give the code name of one"},
		{"postinst", "attest: phase installing packages\ndpkg: error processing package x (--configure):\n installed x package post-installation script subprocess returned error exit status 1\nE: Sub-process /usr/bin/dpkg returned an error code (1)",
			"build: image debian:bookworm+x: installing packages failed: dpkg: error processing package x"},
		{"a crash", "perl: out of memory", "build: image debian:bookworm+x: mmdebstrap failed (mmdebstrap: exit code 9)\n  perl: out of memory"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := openTest(t)
			var said transcript
			said.read(strings.NewReader(test.output), func(line string) { s.follow(t.Context(), &said, m.run, line) })
			err := s.blame(m, &said, 9)
			got := kindOf(err) + ": " + err.Error()
			if !strings.HasPrefix(got, test.want) {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
			if strings.Contains(got, "set -eu") {
				t.Errorf("the build's own script is in the message:\n%s", got)
			}
		})
	}
}

func kindOf(err error) string {
	var spec *SpecError
	var pkg *PackageError
	var run *RunError
	var space *SpaceError
	var build *BuildError
	switch {
	case errors.As(err, &spec):
		return "spec"
	case errors.As(err, &pkg):
		return "package"
	case errors.As(err, &run):
		return "run"
	case errors.As(err, &space):
		return "space"
	case errors.As(err, &build):
		return "build"
	}
	return "other"
}

func TestProgress(t *testing.T) {
	s := openTest(t)
	for line, want := range map[string]string{
		"Get:12 http://deb.example.org/debian bookworm/main amd64 nginx amd64 1.22.1-9 [527 kB]": "downloading nginx",
		"Get:2 http://deb.example.org/debian bookworm InRelease [151 kB]":                        "downloading package lists",
		"Unpacking libc6:amd64 (2.36-9) ...":                                                     "unpacking libc6",
		"Setting up nginx (1.22.1-9) ...":                                                        "setting up nginx",
		"I: creating tarball...":                                                                 "packing the image",
		"attest: run 0":                                                                          "running make",
		"Reading state information...":                                                           "",
	} {
		var bus event.Bus
		var got string
		bus.Subscribe(func(r event.Record) { got = r.Event.(event.Progress).Message })
		s.follow(event.WithBus(t.Context(), &bus), &transcript{}, []string{"make"}, line)
		if got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

// fakeMmdebstrap puts a shell script in mmdebstrap's place.
func fakeMmdebstrap(t *testing.T, script string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"mmdebstrap": script, "apt-get": "exit 1"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// needBuilds has a user who may not build be told how to, and ends the test.
func needBuilds(t *testing.T) {
	t.Helper()
	if !buildRights().OK {
		var missing *doctor.MissingError
		_, err := openTest(t).mmdebstrap(t.Context(), mmdebstrap{})
		if !errors.As(err, &missing) || missing.Remedy == "" {
			t.Errorf("got %v", err)
		}
		t.Skip(err)
	}
}

func TestStreams(t *testing.T) {
	needBuilds(t)
	fakeMmdebstrap(t, `cd "$TMPDIR"; cat <&3 >three; cat <&4 >four; { echo "$ATTEST_END"; echo said; } >attest-end; tar -cf - attest-end three four`)
	s := openTest(t)
	input := func(text string) func(io.Writer) error {
		return func(w io.Writer) error { _, err := io.WriteString(w, text); return err }
	}
	content := map[string]string{}
	large := strings.Repeat("0123456789", 100_000)
	said, err := s.mmdebstrap(t.Context(), mmdebstrap{
		inputs: []func(io.Writer) error{input("3"), input(large)},
		entry: func(h *tar.Header, r io.Reader) error {
			b, err := io.ReadAll(r)
			content[h.Name] = string(b)
			return err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if content["three"] != "3" || content["four"] != large || said != "said\n" || len(content) != 2 {
		t.Errorf("three: %q, four: %d bytes", content["three"], len(content["four"]))
	}
}

// Whatever a build does wrong, it ends, says what it was, and leaves nothing.
func TestStreamsThatFail(t *testing.T) {
	needBuilds(t)
	wrong := errors.New("wrong")
	endless := func(w io.Writer) error {
		for {
			if _, err := w.Write(make([]byte, 4096)); err != nil {
				return err
			}
		}
	}
	for _, test := range []struct {
		name, script string
		entry        error
		cancel       bool
		want         string
	}{
		{"fails at once", "echo E: No such thing >&2; exit 3", nil, false, "No such thing"},
		{"no output", "exit 0", nil, false, "did not finish"},
		{"no end mark", `cd /; tar -cf - etc/hostname`, nil, false, "did not finish"},
		{"another end mark", `cd "$TMPDIR"; echo x >attest-end; tar -cf - attest-end`, nil, false, "did not finish"},
		{"a tar without its end", `cd "$TMPDIR"; echo "$ATTEST_END" >attest-end; tar -cf - attest-end | head -c 1024`, nil, false, "did not finish"},
		{"a tar that ends in a file", `cd "$TMPDIR"; echo "$ATTEST_END" >attest-end; head -c 9999 /dev/zero >big; tar -cf - attest-end big | head -c 4096`, nil, false, "did not finish"},
		{"half a tar", "head -c 700 /dev/zero | tr '\\0' x", nil, false, "tar"},
		{"nobody wants it", "cd /; tar -cf - etc usr/bin; sleep 1000", wrong, false, "wrong"},
		{"hangs", "sleep 1000", nil, true, "deadline"},
	} {
		t.Run(test.name, func(t *testing.T) {
			fakeMmdebstrap(t, test.script)
			s := openTest(t)
			ctx := t.Context()
			if test.cancel {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
				defer cancel()
			}
			_, err := s.mmdebstrap(ctx, mmdebstrap{
				inputs: []func(io.Writer) error{endless},
				entry:  func(*tar.Header, io.Reader) error { return test.entry },
			})
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if left, _ := os.ReadDir(filepath.Join(s.root, "tmp")); len(left) != 0 {
				t.Errorf("left below tmp: %v", left)
			}
		})
	}
}

// A root that may not make namespaces is told so before a build begins, and by attest
// doctor.
func TestRootWithoutRights(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it takes root to give up its rights")
	}
	found := make(chan doctor.Finding)
	var look func()
	look = func() {
		runtime.LockOSThread() // for good: the thread is without rights afterwards
		if unix.Gettid() == os.Getpid() {
			go look() // on another one; Go never ends the first
			return
		}
		header, none := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
		if err := unix.Capset(&header, &none[0]); err != nil {
			found <- doctor.Finding{OK: true, Detail: err.Error()}
			return
		}
		found <- buildRights()
	}
	go look()
	if f := <-found; f.OK || f.Remedy == "" || !strings.Contains(f.Detail, "operation not permitted") {
		t.Errorf("%+v", f)
	}
}

func TestMissingTool(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := lookTool("mmdebstrap-that-nobody-has")
	var missing *doctor.MissingError
	if !errors.As(err, &missing) {
		t.Fatal(err)
	}
	for _, tool := range tools {
		if tool.pkg == "" || tool.use == "" {
			t.Errorf("%s: nothing says how to get it", tool.name)
		}
	}
}

func TestMemoryAvailable(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"proc/meminfo":                        "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n",
		"proc/self/cgroup":                    "0::/ci/job\n",
		"sys/fs/cgroup/ci/memory.max":         "4096000\n",
		"sys/fs/cgroup/ci/memory.current":     "1024000\n",
		"sys/fs/cgroup/ci/job/memory.max":     "max\n",
		"sys/fs/cgroup/ci/job/memory.current": "1\n",
	} {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := memoryAvailable(root); got != 4096000-1024000 {
		t.Errorf("%d bytes: a limit of a group above was not seen", got)
	}
	os.Remove(filepath.Join(root, "proc/self/cgroup"))
	if got := memoryAvailable(root); got != 8000<<10 {
		t.Errorf("%d bytes without groups", got)
	}
}
