package test

import (
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	goerofs "github.com/erofs/go-erofs"
)

// A buildPart is what of an image is built again for each kill.
type buildPart struct {
	kinds []string // of objects, removed before
	times int
}

// TestStressKillBuild kills one process after the other of builds of layers and kernels.
func TestStressKillBuild(t *testing.T) {
	a := newAttack(t, "kill -9 of a process of an image build (layer, kernel)")
	killBuilds(t, a, buildPart{[]string{"layer", "image"}, 20}, buildPart{[]string{"kernel", "image"}, 10})
}

// TestStressKillBase kills processes of builds from an empty cache.
func TestStressKillBase(t *testing.T) {
	a := newAttack(t, "kill -9 of a process of an image build (base)")
	killBuilds(t, a, buildPart{[]string{"base", "layer", "kernel", "image"}, 10})
}

// killBuilds kills processes of real builds, at random moments: attest, its supervisor, or
// whatever mmdebstrap, apt and dpkg have started. A build fails, or what it gives has the
// files that it has otherwise; nothing is left; and the next build works.
func killBuilds(t *testing.T, a *attack, parts ...buildPart) {
	t.Helper()
	home := ownCache(t, "base", "kernel")
	root := filepath.Join(home, "attest")
	build := func(kill time.Duration) (code int, victim string) {
		t.Helper()
		stateDir := newStateDir(t)
		p := start(t, stateDir, []string{"XDG_CACHE_HOME=" + home}, "attest", "image", "build", "--packages", "bc")
		var tree []process
		if kill > 0 {
			select {
			case <-time.After(kill): // the moment is the test
				tree = processTree(p.cmd.Process.Pid)
			case <-p.exited: // its number may be another's by now
			}
			if len(tree) > 0 {
				v := tree[rand.IntN(len(tree))]
				victim = v.String()
				syscall.Kill(v.pid, syscall.SIGKILL)
			}
		}
		code = p.exitCode(t)
		waitForNothing(t, stateDir, tree)
		if faults := cacheFaults(home); faults != "" {
			t.Error(faults)
		}
		if code != 0 && victim == "" {
			t.Fatalf("a build that nobody killed: exit code %d\n%s", code, p.said())
		}
		return code, victim
	}
	build(0)
	whole := imageFiles(t, root)
	outcomes := map[int]int{}
	for _, part := range parts {
		remove := func() {
			for _, kind := range part.kinds {
				if err := os.RemoveAll(filepath.Join(root, kind)); err != nil {
					t.Fatal(err)
				}
			}
		}
		remove()
		began := time.Now()
		build(0)
		takes := time.Since(began)
		for i := 0; i < part.times && a.timeFor(4*takes); i++ { // under load, with the one that is unharmed
			remove()
			code, victim := build(1 + rand.N(takes))
			t.Logf("%v: exit code %d after a kill of %s", part.kinds[0], code, victim)
			outcomes[code]++
			var err error
			if code != 0 && code != 3 && code != -1 {
				err = fmt.Errorf("exit code %d after a kill of %s", code, victim)
			}
			build(0)
			if got := imageFiles(t, root); !maps.Equal(got, whole) {
				err = fmt.Errorf("after a kill of %s (exit code %d) the image has other files: %s", victim, code, difference(got, whole))
			}
			if victim != "" || err != nil {
				a.try(part.kinds[0], err)
			}
		}
	}
	t.Logf("exit codes of killed builds: %v (-1: attest itself was killed)", outcomes)
}

// imageFiles are the files of all objects in an image cache, with the sizes of those
// that are the same in each build.
func imageFiles(t *testing.T, root string) map[string]int64 {
	t.Helper()
	files := map[string]int64{}
	images, _ := filepath.Glob(filepath.Join(root, "*", "*", "*.erofs"))
	for _, image := range images {
		f, err := os.Open(image)
		if err != nil {
			t.Fatal(err)
		}
		fsys, err := goerofs.Open(f)
		if err != nil {
			t.Fatal(err)
		}
		err = fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			size := int64(0)
			if info.Mode().IsRegular() && !strings.HasPrefix(name, "var/") {
				size = info.Size()
			}
			files[filepath.Base(image)+": "+name] = size
			return nil
		})
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	return files
}

func difference(got, want map[string]int64) string {
	var out []string
	for name, size := range want {
		if s, ok := got[name]; !ok || s != size {
			out = append(out, fmt.Sprintf("%s has %d bytes instead of %d (there: %v)", name, s, size, ok))
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			out = append(out, name+" is new")
		}
	}
	return strings.Join(out[:min(len(out), 10)], "; ")
}
