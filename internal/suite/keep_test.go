package suite

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzReadKept: a file that no test left is refused by its name, or names a test.
func FuzzReadKept(f *testing.F) {
	f.Add([]byte(`{"file": "/web_test.star", "test": "test_a", "place": "web_test.star:1:2", "message": "no"}`))
	f.Add([]byte(`{"file": "web_test.star", "test": "test_a"}`))
	f.Add([]byte("null"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, keptFile), data, 0o600); err != nil {
			t.Fatal(err)
		}
		switch k, err := ReadKept(dir); {
		case err != nil && (k != nil || !strings.HasPrefix(err.Error(), keptFile+": ")):
			t.Errorf("got %v, %v", k, err)
		case err == nil && (k == nil || k.Test == "" || !filepath.IsAbs(k.File)):
			t.Errorf("got %+v", k)
		}
	})
}
