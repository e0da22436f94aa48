package testapi

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite testapi.go")

const root = "../.."

func TestFileIsCurrent(t *testing.T) {
	want, err := Generate(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(root, File)
	if *update {
		if err := os.WriteFile(name, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("%s is not current; run make generate (-want +got):\n%s", File, d)
	}
}
