package image

import (
	"fmt"
	"path/filepath"
	"testing"
)

func BenchmarkOverlayDisk(b *testing.B) {
	s := openTest(b)
	dir := b.TempDir()
	for i := 0; b.Loop(); i++ {
		if err := s.OverlayDisk(b.Context(), filepath.Join(dir, fmt.Sprint(i))); err != nil {
			b.Fatal(err)
		}
	}
}
