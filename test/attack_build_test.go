package test

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
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
	until int // after so many kills the next build runs unharmed
}

// TestStressKillBuild kills one process after the other of builds of layers and kernels.
func TestStressKillBuild(t *testing.T) {
	a := newAttack(t, "kill -9 of a process of an image build (layer, kernel)")
	killBuilds(t, a, buildPart{[]string{"layer", "image"}, 24, 3}, buildPart{[]string{"kernel", "image"}, 12, 3})
}

// TestStressKillBase kills processes of builds from an empty cache, which take minutes.
func TestStressKillBase(t *testing.T) {
	a := newAttack(t, "kill -9 of a process of an image build (base)")
	killBuilds(t, a, buildPart{[]string{"base", "layer", "kernel", "image"}, 20, 7})
}

// killBuilds kills processes of real builds: attest, its supervisor, or whatever mmdebstrap,
// apt and dpkg have started. Nothing is left of a build, and each image that is in the cache
// then has the files that it has otherwise. After some kills the next build works.
func killBuilds(t *testing.T, a *attack, parts ...buildPart) {
	t.Helper()
	b := &builds{home: ownCache(t, "base", "kernel"), outcomes: map[int]int{}}
	for _, part := range parts {
		b.remove(t, part.kinds)
		began := time.Now()
		b.unharmed(t)
		takes := time.Since(began)
		b.whole = imageFiles(t, b.root())
		for i := 0; i < part.times && a.timeFor(3*takes); { // with the one that is unharmed
			b.remove(t, part.kinds)
			// The last of those before an unharmed one runs to its end, whatever that is.
			last := (i+1)%part.until == 0 || i+1 == part.times
			victim, err := b.kill(t, spread(i, takes), last)
			if victim == "" && err == nil {
				t.Logf("%s: it had ended after %v", part.kinds[0], spread(i, takes))
			} else {
				a.try(part.kinds[0], err)
			}
			if i++; last || !a.timeFor(3*takes) {
				b.unharmed(t)
				if err := b.compare(t, true); err != nil {
					t.Errorf("%s: the next build after a kill of %s: %v", part.kinds[0], victim, err)
				}
			}
		}
		t.Logf("%s: a build takes %v", part.kinds[0], takes.Round(time.Second))
	}
	t.Logf("exit codes of killed builds: %v (-1: attest itself was killed; 130: it was ended, as it had noticed nothing yet)", b.outcomes)
}

// spread is the moment of attempt i in something that takes so long: any number of them are
// far from each other, and their places do not depend on how many follow.
func spread(i int, takes time.Duration) time.Duration {
	_, part := math.Modf(float64(i+1) * math.Phi)
	return max(1, time.Duration(part*float64(takes)))
}

// builds are those of one image in a cache of their own.
type builds struct {
	home     string
	whole    map[string]int64 // the files of all images
	outcomes map[int]int      // of killed ones, by exit code
}

func (b *builds) root() string { return filepath.Join(b.home, "attest") }

func (b *builds) start(t *testing.T, stateDir string) *program {
	t.Helper()
	return start(t, stateDir, []string{"XDG_CACHE_HOME=" + b.home}, "attest", "image", "build", "--packages", "bc")
}

// remove removes what is to be built again.
func (b *builds) remove(t *testing.T, kinds []string) {
	t.Helper()
	for _, kind := range kinds {
		if err := os.RemoveAll(filepath.Join(b.root(), kind)); err != nil {
			t.Fatal(err)
		}
	}
}

// unharmed is a build that nobody kills.
func (b *builds) unharmed(t *testing.T) {
	t.Helper()
	stateDir := newStateDir(t)
	p := b.start(t, stateDir)
	if code := p.exitCodeWithin(t, buildPatience); code != 0 {
		t.Fatalf("a build that nobody killed: exit code %d\n%s", code, p.said())
	}
	waitForNothing(t, stateDir, nil)
}

// buildPatience is for a build from nothing on a host that is busy.
const buildPatience = 30 * time.Minute

// noticeLimit is how long a build may take to notice that a process of it is missing. Then it
// is ended, as the rest would take minutes, unless it is to run to its end.
const noticeLimit = 20 * time.Second

// kill kills a process of a build at a moment; none if it had ended before. The error is what
// is not as it has to be then.
func (b *builds) kill(t *testing.T, moment time.Duration, toItsEnd bool) (victim string, err error) {
	t.Helper()
	stateDir := newStateDir(t)
	p := b.start(t, stateDir)
	var tree []process
	select {
	case <-time.After(moment): // the moment is the test
		tree = processTree(p.cmd.Process.Pid)
	case <-p.exited: // its number may be another's by now
	}
	ended := false
	if len(tree) > 0 {
		v := tree[rand.IntN(len(tree))]
		victim = v.String()
		syscall.Kill(v.pid, syscall.SIGKILL)
		if !toItsEnd {
			select {
			case <-p.exited:
			case <-time.After(noticeLimit):
				ended = true
				p.cmd.Process.Signal(syscall.SIGTERM)
			}
		}
	}
	code := p.exitCodeWithin(t, buildPatience)
	t.Logf("exit code %d after a kill of %s at %v", code, victim, moment.Round(time.Millisecond))
	if victim != "" {
		b.outcomes[code]++
	}
	if left := awaitNothing(stateDir, tree); left != "" {
		err = fmt.Errorf("this is left after a kill of %s:\n%s", victim, left)
	}
	if code != 0 && (victim == "" || code != 3 && code != -1 && !(ended && code == 130)) {
		err = errors.Join(err, fmt.Errorf("exit code %d after a kill of %q\n%s", code, victim, p.said()))
	}
	if faults := cacheFaults(b.home); faults != "" {
		err = errors.Join(err, fmt.Errorf("the cache after a kill of %s: %s", victim, faults))
	}
	if different := b.compare(t, code == 0); different != nil {
		err = errors.Join(err, fmt.Errorf("exit code %d after a kill of %s: %w", code, victim, different))
	}
	return victim, err
}

// compare compares the images in the cache with those that were made first. All of them have to
// be there, or some.
func (b *builds) compare(t *testing.T, all bool) error {
	t.Helper()
	got, want := imageFiles(t, b.root()), b.whole
	if !all {
		images := map[string]bool{}
		for name := range got {
			image, _, _ := strings.Cut(name, ": ")
			images[image] = true
		}
		want = maps.Clone(b.whole)
		maps.DeleteFunc(want, func(name string, _ int64) bool {
			image, _, _ := strings.Cut(name, ": ")
			return !images[image]
		})
	}
	if !maps.Equal(got, want) {
		return fmt.Errorf("an image has other files: %s", difference(got, want))
	}
	return nil
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
