package boot

import (
	"os"
	"path/filepath"
	"testing"
)

func TestEmptyTmp(t *testing.T) {
	const debian = "# comment\nD /tmp 1777 root root -\n#q /var/tmp 1777 root root 30d\n"
	write := func(dir, name, content string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	exists := func(dir, name string) bool {
		_, err := os.Lstat(filepath.Join(dir, name))
		return err == nil
	}
	for name, test := range map[string]struct {
		files   map[string]string
		emptied bool
		run     string
	}{
		"as on Debian":      {map[string]string{"usr/lib/tmpfiles.d/tmp.conf": debian}, true, "# comment\nd /tmp 1777 root root -\n#q /var/tmp 1777 root root 30d\n"},
		"changed in /etc":   {map[string]string{"usr/lib/tmpfiles.d/tmp.conf": debian, "etc/tmpfiles.d/tmp.conf": debian}, false, ""},
		"not emptied":       {map[string]string{"usr/lib/tmpfiles.d/tmp.conf": "q /tmp 1777 root root 10d\n"}, false, ""},
		"without systemd":   {nil, false, ""},
		"only when booting": {map[string]string{"usr/lib/tmpfiles.d/tmp.conf": "D! /tmp 1777 root root -\n"}, true, "d! /tmp 1777 root root -\n"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(dir, "tmp/old/file", "x")
			for name, content := range test.files {
				write(dir, name, content)
			}
			if err := emptyTmp(dir); err != nil {
				t.Fatal(err)
			}
			if exists(dir, "tmp/old") == test.emptied {
				t.Errorf("emptied: %v, want %v", !test.emptied, test.emptied)
			}
			got, _ := os.ReadFile(filepath.Join(dir, "run/tmpfiles.d/tmp.conf"))
			if string(got) != test.run {
				t.Errorf("/run/tmpfiles.d/tmp.conf is %q, want %q", got, test.run)
			}
		})
	}
}
