package watch

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// A change is seen whether it comes before Await or while it waits, and what changes
// nothing is not.
func TestAwait(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(dir string) error
		want   string // relative to the directory
	}{
		{"write", func(dir string) error { return os.WriteFile(filepath.Join(dir, "file"), []byte("new"), 0o644) }, "file"},
		{"replace", func(dir string) error {
			err := os.WriteFile(filepath.Join(dir, "temporary"), []byte("new"), 0o644)
			return errors.Join(err, os.Rename(filepath.Join(dir, "temporary"), filepath.Join(dir, "file")))
		}, "file"},
		{"remove", func(dir string) error { return os.Remove(filepath.Join(dir, "file")) }, "file"},
		{"deep in a tree", func(dir string) error { return os.WriteFile(filepath.Join(dir, "tree/a/b"), []byte("new"), 0o644) }, "tree/a/b"},
		{"new in a tree", func(dir string) error { return os.WriteFile(filepath.Join(dir, "tree/c"), nil, 0o644) }, "tree/c"},
		{"new directory in a tree", func(dir string) error {
			err := os.MkdirAll(filepath.Join(dir, "tree/new/deep"), 0o755)
			return errors.Join(err, os.WriteFile(filepath.Join(dir, "tree/new/deep/x"), nil, 0o644))
		}, "tree/new"},
		{"appears", func(dir string) error {
			return errors.Join(os.MkdirAll(filepath.Join(dir, "none/yet"), 0o755), os.WriteFile(filepath.Join(dir, "none/yet/x"), nil, 0o644))
		}, "none/yet"},
	} {
		for _, when := range []string{"before", "meanwhile"} {
			t.Run(tt.name+" "+when, func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				write(t, filepath.Join(dir, "file"), "old")
				write(t, filepath.Join(dir, "tree/a/b"), "old")
				var s Set
				for _, p := range []string{"file", "tree", "none/yet"} {
					s.Add(filepath.Join(dir, p), nil)
				}
				if changed := s.Changed(); changed != nil {
					t.Fatalf("changed before: %v", changed)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if when == "before" {
					if err := tt.change(dir); err != nil {
						t.Fatal(err)
					}
				}
				asked := make(chan struct{}, 100)
				type result struct {
					changed []string
					err     error
				}
				done := make(chan result, 1)
				go func() {
					changed, err := s.Await(ctx, func() []string { asked <- struct{}{}; return nil })
					done <- result{changed, err}
				}()
				<-asked // it watches now
				if when == "meanwhile" {
					// Written again with what it has: no change.
					write(t, filepath.Join(dir, "file"), "old")
					write(t, filepath.Join(dir, "beside"), "x")
					if err := tt.change(dir); err != nil {
						t.Fatal(err)
					}
				}
				r := <-done
				if r.err != nil || len(r.changed) != 1 || !strings.HasPrefix(r.changed[0], filepath.Join(dir, tt.want)) {
					t.Errorf("got %v, %v", r.changed, r.err)
				}
			})
		}
	}
}

// What else is asked for ends the wait, and so does the context.
func TestAwaitMore(t *testing.T) {
	dir := t.TempDir()
	var s Set
	s.Add(filepath.Join(dir, "file"), nil)
	changed, err := s.Await(t.Context(), func() []string { return []string{"more"} })
	if err != nil || len(changed) != 1 || changed[0] != "more" {
		t.Errorf("%v, %v", changed, err)
	}
	over := errors.New("over")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(over)
	if _, err := s.Await(ctx, nil); !errors.Is(err, over) {
		t.Error(err)
	}
}
