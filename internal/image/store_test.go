package image

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/supervise"
)

// This test binary is also the other process of tests that need one.
const childEnv = "ATTEST_IMAGE_TEST_CHILD"

func TestMain(m *testing.M) {
	if job := os.Getenv(childEnv); job != "" {
		child(job)
		return
	}
	os.Exit(m.Run())
}

// direct runs tools without a supervisor, for tests that kill nothing.
type direct struct{}

func (direct) run(ctx context.Context, c supervise.Command) (int, error) {
	cmd := exec.CommandContext(ctx, c.Path)
	cmd.Args, cmd.Env, cmd.Dir, cmd.ExtraFiles = c.Args, c.Env, c.Dir, c.ExtraFiles
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if c.Stdout != nil {
		cmd.Stdout, cmd.Stderr = c.Stdout, c.Stderr
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if ctx.Err() != nil {
		return -1, context.Cause(ctx)
	}
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

func openTest(t testing.TB) *Store {
	t.Helper()
	s, err := OpenStoreAt(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	s.run = direct{}
	return s
}

type record struct{ Text string }

// put makes an object of a file with so many bytes.
func put(t testing.TB, s *Store, r ref, size int) *lease {
	t.Helper()
	l, err := s.object(t.Context(), r, &record{"x"}, func(_ context.Context, dir string) error {
		return os.WriteFile(filepath.Join(dir, "file"), make([]byte, size), 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestObjectIsMadeOnce(t *testing.T) {
	s := openTest(t)
	made := 0
	for range 3 {
		var got record
		l, err := s.object(t.Context(), "base/k", &got, func(_ context.Context, dir string) error {
			made++
			got.Text = "hello"
			return os.WriteFile(filepath.Join(dir, "file"), nil, 0o644)
		})
		if err != nil {
			t.Fatal(err)
		}
		l.release()
		if got.Text != "hello" {
			t.Errorf("record %+v", got)
		}
	}
	if made != 1 {
		t.Errorf("made %d times", made)
	}
}

func TestFailedBuildLeavesNothing(t *testing.T) {
	s := openTest(t)
	wrong := errors.New("wrong")
	_, err := s.object(t.Context(), "base/k", &record{}, func(_ context.Context, dir string) error {
		os.WriteFile(filepath.Join(dir, "file"), []byte("half"), 0o644)
		return wrong
	})
	if !errors.Is(err, wrong) {
		t.Fatal(err)
	}
	for _, dir := range []string{"tmp", "lock", "base"} {
		if entries, _ := os.ReadDir(filepath.Join(s.root, dir)); len(entries) != 0 {
			t.Errorf("%s: %v", dir, entries)
		}
	}
}

// child is what another process does: "build ROOT" makes object base/k and says
// "built" if it was the one; "supervised ROOT" does it below a supervisor; "loop ROOT"
// makes one object after the other until it is killed.
func child(job string) {
	what, root, _ := strings.Cut(job, " ")
	var sup *supervise.Supervisor
	var err error
	if what == "supervised" {
		if sup, err = supervise.Start(context.Background(), supervise.Options{}); err != nil {
			panic(err)
		}
		what = "build"
	}
	s, err := OpenStoreAt(root, sup)
	if err != nil {
		panic(err)
	}
	fill := func(_ context.Context, dir string) error {
		fmt.Println("building")
		for i := range 20 {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), bytes.Repeat([]byte{byte(i)}, 10_000), 0o644); err != nil {
				return err
			}
		}
		if what == "build" {
			bufio.NewReader(os.Stdin).ReadString('\n') // the test says when
		}
		return nil
	}
	for i := 0; ; i++ {
		if _, err := s.object(context.Background(), makeRef(kindBase, fmt.Sprint("k", i)), &record{"done"}, fill); err != nil {
			panic(err)
		}
		fmt.Println("done")
		if what == "build" {
			return
		}
	}
}

type process struct {
	*exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startChild(t *testing.T, job string) *process {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+job)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return &process{cmd, in, bufio.NewScanner(out)}
}

func (p *process) expect(t *testing.T, line string) {
	t.Helper()
	if !p.out.Scan() || p.out.Text() != line {
		t.Fatalf("the other process said %q, not %q", p.out.Text(), line)
	}
}

// Two processes want the same object: one builds it, the other says what it
// waits for and takes what the first has made.
func TestTwoProcessesBuildOnce(t *testing.T) {
	s := openTest(t)
	other := startChild(t, "build "+s.root)
	other.expect(t, "building")

	var bus event.Bus
	waiting, over := make(chan string, 10), false
	bus.Subscribe(func(r event.Record) {
		if p, ok := r.Event.(event.Progress); ok {
			over = p.Done
			waiting <- p.Message
		}
	})
	result := make(chan error, 1)
	go func() {
		var got record
		l, err := s.object(event.WithBus(t.Context(), &bus), "base/k0", &got, func(context.Context, string) error {
			return errors.New("built a second time")
		})
		if err == nil {
			l.release()
			if got.Text != "done" {
				err = fmt.Errorf("record %+v", got)
			}
		}
		result <- err
	}()
	if msg := <-waiting; !strings.Contains(msg, fmt.Sprintf("waiting for process %d", other.Process.Pid)) {
		t.Errorf("said %q", msg)
	}
	io.WriteString(other.in, "\n")
	other.expect(t, "done")
	if err := <-result; err != nil {
		t.Error(err)
	}
	if !over {
		t.Error("nobody says that the wait is over")
	}
}

func TestWaitingEndsWithItsContext(t *testing.T) {
	s := openTest(t)
	other := startChild(t, "build "+s.root)
	other.expect(t, "building")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := s.object(ctx, "base/k0", &record{}, func(context.Context, string) error { return nil })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// A build that is killed at any moment leaves complete objects and nothing
// else that lasts: its lock is free and its directory is swept.
func TestKilledBuilds(t *testing.T) {
	s := openTest(t)
	seen := 0
	for i := range 25 {
		root := filepath.Join(s.root, fmt.Sprint(i))
		other := startChild(t, "loop "+root)
		other.expect(t, "building")
		for range rand.IntN(3) {
			other.expect(t, "done")
			other.expect(t, "building")
		}
		<-time.After(time.Duration(rand.IntN(30_000)) * time.Microsecond) // the moment is the test
		other.Process.Kill()
		other.Wait()

		killed, err := OpenStoreAt(root, nil)
		if err != nil {
			t.Fatal(err)
		}
		objects, err := os.ReadDir(filepath.Join(root, kindBase))
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects {
			seen++
			checkComplete(t, killed, makeRef(kindBase, o.Name()))
		}
		next := makeRef(kindBase, fmt.Sprint("k", len(objects))) // what it was at
		put(t, killed, next, 10).release()
		if left, _ := os.ReadDir(filepath.Join(root, "tmp")); len(left) != 0 {
			t.Errorf("left below tmp: %v", left)
		}
	}
	if seen == 0 {
		t.Error("no process came as far as an object")
	}
}

// The scratch directory and the lock of a build go with its process, also when that
// alone is killed.
func TestKilledBuildLeavesNothing(t *testing.T) {
	root := t.TempDir()
	other := startChild(t, "supervised "+root)
	other.expect(t, "building")
	for _, dir := range []string{"tmp", "lock"} {
		if entries, err := os.ReadDir(filepath.Join(root, dir)); len(entries) != 1 {
			t.Errorf("%s during the build: %v, %v", dir, entries, err)
		}
	}
	other.Process.Kill()
	other.Wait()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); ; <-tick.C {
		tmp, _ := os.ReadDir(filepath.Join(root, "tmp"))
		locks, _ := os.ReadDir(filepath.Join(root, "lock"))
		if len(tmp)+len(locks) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left: %v, %v", tmp, locks)
		}
	}
}

func checkComplete(t *testing.T, s *Store, r ref) {
	t.Helper()
	var got record
	l, err := s.acquire(r, &got)
	if err != nil {
		t.Error(err)
		return
	}
	defer l.release()
	for i := range 20 {
		data, err := os.ReadFile(filepath.Join(l.dir, fmt.Sprint(i)))
		if err != nil || !bytes.Equal(data, bytes.Repeat([]byte{byte(i)}, 10_000)) {
			t.Errorf("%s is in place and not complete: file %d has %d bytes (%v)", r, i, len(data), err)
		}
	}
	if got.Text != "done" {
		t.Errorf("%s: record %+v", r, got)
	}
}

// Sweep does not touch what a living process, or a tool of a dead one, works in.
func TestSweepLeavesLiveBuilds(t *testing.T) {
	s := openTest(t)
	live, err := s.scratch()
	if err != nil {
		t.Fatal(err)
	}
	// The tool's inherited descriptor is another reference to the same lock.
	tool, err := unix.Dup(int(live.File.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	live.File.Close()
	if removed, err := s.Sweep(t.Context()); err != nil || len(removed) != 0 {
		t.Errorf("removed %v, %v", removed, err)
	}
	unix.Close(tool)
	if removed, err := s.Sweep(t.Context()); err != nil || len(removed) != 1 || removed[0] != live.Dir {
		t.Errorf("removed %v, %v", removed, err)
	}
}

// image makes the record of an image with parts of so many bytes, used so long ago.
func fakeImage(t *testing.T, s *Store, name string, unused time.Duration, parts map[ref]int) *lease {
	t.Helper()
	m := imageMeta{ID: name + "0123456789", Title: name}
	for r, size := range parts {
		put(t, s, r, size).release()
		m.Parts = append(m.Parts, r)
	}
	l, err := s.object(t.Context(), makeRef(kindImage, name), &m, func(context.Context, string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(-unused)
	if err := os.Chtimes(filepath.Join(l.dir, usedName), at, at); err != nil {
		t.Fatal(err)
	}
	return l
}

const mib = 1 << 20

func threeImages(t *testing.T) (*Store, map[string]*lease) {
	s := openTest(t)
	return s, map[string]*lease{
		"base":  fakeImage(t, s, "base", time.Hour, map[ref]int{"base/b": 4 * mib}),
		"nginx": fakeImage(t, s, "nginx", 2*time.Hour, map[ref]int{"base/b": 4 * mib, "layer/n": mib}),
		"old":   fakeImage(t, s, "old", 100*time.Hour, map[ref]int{"base/o": 2 * mib}),
	}
}

func titles(entries []Entry) string {
	var out []string
	for _, e := range entries {
		out = append(out, e.Title)
	}
	return strings.Join(out, " ")
}

func TestList(t *testing.T) {
	s, leases := threeImages(t)
	leases["nginx"].release()
	list, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := titles(list); got != "base nginx old" {
		t.Fatalf("order %s", got)
	}
	near := func(bytes int64, want int64) bool { return bytes >= want && bytes < want+mib/2 }
	if e := list[0]; !e.InUse || !near(e.Size, 4*mib) || !near(e.Own, 0) {
		t.Errorf("%+v", e)
	}
	if e := list[1]; e.InUse || !near(e.Size, 5*mib) || !near(e.Own, mib) || time.Since(e.LastUsed) < time.Hour {
		t.Errorf("%+v", e)
	}
	for name, want := range map[string]string{"old": "old", "ngin": "nginx", "nosuch": "", "": ""} {
		found, err := s.Find(t.Context(), name)
		if err != nil || titles(found) != want {
			t.Errorf("Find(%q) = %s, %v", name, titles(found), err)
		}
	}
	if _, err := json.Marshal(list); err != nil {
		t.Error(err)
	}
}

func TestRemove(t *testing.T) {
	s, leases := threeImages(t)
	list, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	nginx := list[1]
	var inUse *InUseError
	if _, err := s.Remove(t.Context(), nginx); !errors.As(err, &inUse) {
		t.Fatalf("removed an image in use: %v", err)
	}
	leases["nginx"].release()
	freed, err := s.Remove(t.Context(), nginx)
	if err != nil || freed < mib || freed > 2*mib {
		t.Errorf("freed %d, %v", freed, err)
	}
	for r, there := range map[ref]bool{"layer/n": false, "base/b": true, "image/base": true} {
		_, err := os.Stat(filepath.Join(s.root, string(r)))
		if there != (err == nil) {
			t.Errorf("%s: %v", r, err)
		}
	}
	if _, err := s.Remove(t.Context(), nginx); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the second time: %v", err)
	}
}

func TestPrune(t *testing.T) {
	for _, test := range []struct {
		name string
		o    PruneOptions
		keep string // still leased
		want string // what is left
	}{
		{"everything", PruneOptions{}, "", ""},
		{"everything not in use", PruneOptions{}, "nginx", "nginx"},
		{"older than a day", PruneOptions{OlderThan: 24 * time.Hour}, "", "base nginx"},
		{"down to 6 MiB", PruneOptions{MaxSize: 6 * mib}, "", "base nginx"},
		{"down to 5 MiB", PruneOptions{MaxSize: 5 * mib}, "", "base"},
		{"old ones down to 1 MiB", PruneOptions{OlderThan: 90 * time.Minute, MaxSize: mib}, "", "base"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, leases := threeImages(t)
			for name, l := range leases {
				if name != test.keep {
					l.release()
				}
			}
			put(t, s, "layer/orphan", 3*mib).release()
			_, freed, err := s.Prune(t.Context(), test.o)
			if err != nil {
				t.Fatal(err)
			}
			list, err := s.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if got := titles(list); got != test.want {
				t.Errorf("left: %q, want %q", got, test.want)
			}
			if _, err := os.Stat(filepath.Join(s.root, "layer/orphan")); err == nil || freed < 3*mib {
				t.Errorf("a part of no image stays; freed %d", freed)
			}
			runtime.KeepAlive(leases) // a lease that is garbage is one that was given back
		})
	}
}

// Images are taken and removed at the same time: whoever has one can use it.
func TestAcquireAgainstPrune(t *testing.T) {
	s := openTest(t)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for ctx.Err() == nil {
				l := put(t, s, "base/b", 100)
				if _, err := os.Stat(filepath.Join(l.dir, "file")); err != nil {
					t.Error(err)
				}
				l.release()
			}
		})
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			if _, _, err := s.Prune(t.Context(), PruneOptions{}); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
}

func TestSpace(t *testing.T) {
	s := openTest(t)
	var space *SpaceError
	if err := s.reserve(1 << 60); !errors.As(err, &space) || space.Need != 1<<60 || !strings.Contains(err.Error(), s.root) {
		t.Errorf("%v", err)
	}
	_, err := s.object(t.Context(), "base/k", &record{}, func(context.Context, string) error {
		return &os.PathError{Op: "write", Path: "x", Err: unix.ENOSPC}
	})
	if !errors.As(err, &space) || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("%v", err)
	}
}
