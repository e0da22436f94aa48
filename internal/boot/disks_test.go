package boot

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestDisksByOrder(t *testing.T) {
	sys := t.TempDir()
	for _, name := range []string{"vda", "vdc", "loop0"} {
		if err := os.Mkdir(filepath.Join(sys, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	disks, err := disksByOrder(sys, []string{"attest-l0", "attest-mod", "attest-rw"})
	want := map[string]string{"attest-l0": "/dev/vda", "attest-rw": "/dev/vdc"}
	if err != nil || !maps.Equal(disks, want) {
		t.Errorf("got %v, %v", disks, err)
	}
	if missing := missingDisks([]string{"attest-l0", "attest-mod"}, disks); !slices.Equal(missing, []string{"attest-mod"}) {
		t.Errorf("missing %v", missing)
	}
}

func TestVirtioDisk(t *testing.T) {
	for i, want := range map[int]string{0: "vda", 25: "vdz", 26: "vdaa", 51: "vdaz", 52: "vdba", 701: "vdzz", 702: "vdaaa"} {
		if got := virtioDisk(i); got != want {
			t.Errorf("disk %d: %s, want %s", i, got, want)
		}
	}
}
