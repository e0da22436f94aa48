package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/supervise"
)

// fakeBuild has mmdebstrap's processes: one that copies, process 1 of a namespace,
// which loses the signal that ended its child, that child, and what it starts. It
// waits at the step that TEST_STEP names.
const fakeBuild = `
step() {
	if [ "$1" = "$TEST_STEP" ]; then
		sh -c 'echo here > "$TEST_AT"; read x < "$TEST_GO"'
	fi
}
worker() {
	root=$TMPDIR/root
	mkdir "$root"
	head -c 300000 /dev/zero > "$root/large"
	step before
	sh "$ATTEST_SCRIPT" "$root" || exit 1
	step after
	tar -C "$root" -cf "$TMPDIR/tar" . || exit 1
	head -c 20000 "$TMPDIR/tar"
	step half
	tail -c +20001 "$TMPDIR/tar"
	step end
}
init() {
	(worker)
	code=$?
	[ $code -lt 128 ] || code=0
	exit $code
}
{ (init); echo $? > "$TMPDIR/code"; } | cat
exit $(cat "$TMPDIR/code" || echo 1)
`

const fakeScript = `
[ "$TEST_STEP" != script ] || sh -c 'echo here > "$TEST_AT"; read x < "$TEST_GO"'
echo small > "$1/small"
echo "$ATTEST_END" > "$1/attest-end"
`

// A killable is a fake build that waits at a step until it is told to go on.
type killable struct {
	store  *Store
	at, on *os.File // FIFOs
	mark   string   // in the environment of its processes
}

func newKillable(t *testing.T) *killable {
	needBuilds(t)
	fakeMmdebstrap(t, fakeBuild)
	sup, err := supervise.Start(t.Context(), supervise.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sup.Close() })
	s, err := OpenStoreAt(t.TempDir(), sup)
	if err != nil {
		t.Fatal(err)
	}
	k := &killable{store: s}
	for variable, file := range map[string]**os.File{"TEST_AT": &k.at, "TEST_GO": &k.on} {
		path := filepath.Join(t.TempDir(), "fifo")
		if err := syscall.Mkfifo(path, 0o666); err != nil {
			t.Fatal(err)
		}
		if *file, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { (*file).Close() })
		t.Setenv(variable, path)
		k.mark = variable + "=" + path
	}
	return k
}

// processes are those of the build, the oldest first.
func (k *killable) processes() (pids []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, file := range files {
		if env, err := os.ReadFile(file); err == nil && slices.Contains(strings.Split(string(env), "\x00"), k.mark) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

// build makes an object of what the fake writes.
func (k *killable) build(ctx context.Context) (*lease, error) {
	return k.store.object(ctx, "base/k", &record{}, func(ctx context.Context, dir string) error {
		_, err := k.store.mmdebstrap(ctx, mmdebstrap{title: "fake", script: fakeScript, entry: func(h *tar.Header, r io.Reader) error {
			if h.Typeflag != tar.TypeReg {
				return nil
			}
			data, err := io.ReadAll(r)
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, filepath.Base(h.Name)), data, 0o644)
		}})
		return err
	})
}

// Whichever process of a build is killed, and at whatever step: the build failed,
// for a reason of the host's, or what it left is whole; nothing else is left; and the
// next build works.
func TestKilledProcessOfABuild(t *testing.T) {
	k := newKillable(t)
	failed, survived := 0, 0
	for _, step := range []string{"before", "script", "after", "half", "end"} {
		for i, more := 0, true; more; i++ {
			os.Setenv("TEST_STEP", step)
			result := make(chan error, 1)
			go func() {
				l, err := k.build(t.Context())
				if err == nil {
					l.release()
				}
				result <- err
			}()
			if _, err := k.at.Read(make([]byte, 16)); err != nil {
				t.Fatal(err)
			}
			pids := k.processes()
			more = i+1 < len(pids)
			victim := pids[min(i, len(pids)-1)]
			name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", victim))
			if err := syscall.Kill(victim, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			k.on.WriteString("\n") // what still waits goes on
			err := <-result
			k.drain(t)
			var build *BuildError
			switch {
			case err == nil:
				survived++
				k.checkObject(t)
			case !errors.As(err, &build) || build.Status() != event.Infra:
				t.Errorf("%s, process %d (%q): %v", step, i, name, err)
			default:
				failed++
			}
			os.Setenv("TEST_STEP", "")
			l, err := k.build(t.Context())
			if err != nil {
				t.Fatalf("the next build after %s, process %d: %v", step, i, err)
			}
			l.release()
			k.checkObject(t)
			if _, err := k.store.removeObject("base/k"); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("%d builds failed, %d survived", failed, survived)
	if failed < 10 || survived == 0 {
		t.Error("the test kills too little")
	}
}

// drain takes back what no process has read.
func (k *killable) drain(t *testing.T) {
	t.Helper()
	fd := int(k.on.Fd())
	if err := syscall.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	for {
		if n, _ := syscall.Read(fd, make([]byte, 16)); n <= 0 {
			return
		}
	}
}

func (k *killable) checkObject(t *testing.T) {
	t.Helper()
	l, err := k.store.acquire("base/k", &record{})
	if err != nil {
		t.Error(err)
		return
	}
	defer l.release()
	for name, want := range map[string]int64{"large": 300000, "small": 6} {
		if st, err := os.Stat(filepath.Join(l.dir, name)); err != nil || st.Size() != want {
			t.Errorf("%s is believed, and is not whole: %v, %v", name, st, err)
		}
	}
	if _, err := os.Stat(filepath.Join(l.dir, endEntry)); err == nil {
		t.Error("the end mark is in the object")
	}
	for _, dir := range []string{"tmp", "lock"} {
		if left, _ := os.ReadDir(filepath.Join(k.store.root, dir)); len(left) != 0 {
			t.Errorf("left in %s: %v", dir, left)
		}
	}
}

// A base, a layer or a kernel with its end mark and without what it must have.
func TestLook(t *testing.T) {
	const status = "Package: a\nStatus: install ok installed\nProvides: virtual, other (= 1)\n\n" +
		"Package: g++\nStatus: hold ok installed\nDescription: x\n Package: no\n\n" +
		"Package: gone\nStatus: deinstall ok config-files\n"
	for _, test := range []struct{ status, packages, want string }{
		{status, "a", ""},
		{status, "a:amd64", ""},
		{status, "a=1.*", ""},
		{status, "virtual", ""},
		{status, "other", ""},
		{status, "g++", ""},
		{status, "a+", ""},
		{status, "gone-", ""},
		{status, "a-", "a-"},
		{status, "b", "b"},
		{status, "gone", "gone"},
		{status, "no", "no"},
		{status + "\nPackage: half\nStatus: install ok unpacked\n", "a", "half"},
		{status + "\nPackage: half\nStatus: install reinstreq installed\n", "a", "half"},
		{"", "a", "no package"},
	} {
		err := parseStatus(test.status).check([]string{test.packages})
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s of %.20q: %v, want %q", test.packages, test.status, err, test.want)
		}
	}
	if err := checkSystem(index{"usr/bin/sh": {}, "usr/sbin/init": {}}, status); err == nil {
		t.Error("a base without dpkg is believed")
	}
	all := index{"modules.dep": {}, "a.ko": {}, "kernel/b.ko": {}}
	const dep = "a.ko:\nkernel/b.ko: a.ko\n"
	for name, err := range map[string]error{
		"missing": checkModules(index{"modules.dep": {}, "a.ko": {}}, []byte(dep), modules),
		"empty":   checkModules(index{}, nil, modules),
		"no end":  checkModules(all, []byte(dep), ""),
	} {
		if err == nil {
			t.Errorf("%s: modules are believed", name)
		}
	}
	if err := errors.Join(checkModules(all, []byte(dep), modules), checkModules(index{}, nil, "")); err != nil {
		t.Error(err)
	}
}

// What has no end mark, or is not as that says, is used by nobody: it is made again,
// listed with the reason, and removed when asked to.
func TestUselessObjects(t *testing.T) {
	damage := map[string]func(dir string) error{
		"no mark":        func(dir string) error { return os.Remove(filepath.Join(dir, completeName)) },
		"damaged mark":   func(dir string) error { return os.WriteFile(filepath.Join(dir, completeName), []byte("{"), 0o644) },
		"a missing file": func(dir string) error { return os.Remove(filepath.Join(dir, "file")) },
		"half a file":    func(dir string) error { return os.Truncate(filepath.Join(dir, "file"), 5) },
		"no record":      func(dir string) error { return os.Remove(filepath.Join(dir, metaName)) },
	}
	for name, hurt := range damage {
		t.Run(name, func(t *testing.T) {
			s, leases := threeImages(t)
			for _, l := range leases {
				l.release()
			}
			put(t, s, "kernel/alone", 10).release()
			for _, r := range []string{"layer/n", "kernel/alone"} {
				if err := hurt(filepath.Join(s.root, r)); err != nil {
					t.Fatal(err)
				}
			}
			list, err := s.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			reasons := map[string]string{}
			for _, e := range list {
				reasons[e.Title] = e.Reason
			}
			if len(reasons) != 4 || reasons["base"] != "" || !strings.HasPrefix(reasons["nginx"], "its layer: ") || reasons["(kernel)"] == "" {
				t.Errorf("%q", reasons)
			}
			removed, err := s.RemoveUseless(t.Context())
			if err != nil || len(removed) != 3 { // the image, its layer, the kernel
				t.Errorf("removed %v, %v", removed, err)
			}
			if list, err = s.List(t.Context()); err != nil || titles(list) != "base old" {
				t.Errorf("left: %s, %v", titles(list), err)
			}

			l := put(t, s, "base/again", 10)
			if err := hurt(l.dir); err != nil {
				t.Fatal(err)
			}
			if _, err := s.object(t.Context(), "base/again", &record{}, nil); err == nil || !strings.Contains(err.Error(), "another process uses it") {
				t.Errorf("replaced under its user: %v", err)
			}
			l.release()
			l = put(t, s, "base/again", 10)
			defer l.release()
			if err := checkMark(l.dir); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestOOMKills(t *testing.T) {
	root := t.TempDir()
	if n := oomKills(root); n != 0 {
		t.Errorf("%d without a count", n)
	}
	for name, text := range map[string]string{
		"proc/self/cgroup":                    "0::/ci/job\n",
		"sys/fs/cgroup/ci/job/memory.events":  "low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 0\n",
		"sys/fs/cgroup/ci/other/memory.event": "oom_kill 9\n",
	} {
		name = filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if n := oomKills(root); n != 2 {
		t.Errorf("%d processes killed, want 2", n)
	}
	for name, text := range map[string]string{
		"proc/self/cgroup": "4:memory:/ci/job\n3:cpuset:/\n0::/\n",
		"sys/fs/cgroup/memory/ci/job/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n",
	} {
		name = filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if n := oomKills(root); n != 5 {
		t.Errorf("version 1: %d processes killed, want 5", n)
	}
}
