package supervise

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRemoveTreeDoesNotFollowMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount")
	}
	precious, dir := t.TempDir(), filepath.Join(tempRoot(t), "state")
	if err := os.WriteFile(filepath.Join(precious, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	inner := filepath.Join(dir, "a b", "mnt")
	if err := os.MkdirAll(inner, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(precious, inner, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(inner, unix.MNT_DETACH) })
	if err := RemoveTree(dir); err != nil {
		t.Error(err)
	}
	expectNoDir(t, dir)
	if _, err := os.Stat(filepath.Join(precious, "file")); err != nil {
		t.Errorf("removed through a mount: %v", err)
	}
}

func TestParseParent(t *testing.T) {
	for _, tt := range []struct {
		stat string
		want int
		bad  bool
	}{
		{stat: "12 (sh) S 7 12 12 0 -1", want: 7},
		{stat: "12 (a) R 1 (b) (c)) Z 9 12", want: 9},
		{stat: "12 (with\nnewline) S 3 4", want: 3},
		{stat: "", bad: true},
		{stat: "12 (sh) S", bad: true},
		{stat: "12 (sh) S x", bad: true},
	} {
		got, err := parseParent(tt.stat)
		if got != tt.want || (err != nil) != tt.bad {
			t.Errorf("%q: %d, %v", tt.stat, got, err)
		}
	}
}
