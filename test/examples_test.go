package test

import (
	"path/filepath"
	"testing"
)

// TestExamples runs the examples as their readers do, and the file that calls
// every operation of the table.
func TestExamples(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../examples/*.star")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples (%v)", err)
	}
	for _, file := range append(files, "../internal/operation/testdata/every_operation.star") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			p := start(t, newStateDir(t), nil, "attest", "run", "-o", t.TempDir(), file)
			if code := p.exitCode(t); code != 0 {
				t.Errorf("exit code %d", code)
			}
		})
	}
}
