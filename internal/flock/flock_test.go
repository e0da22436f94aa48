package flock

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

func TestFileIsCancelled(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lock")
	unlock, err := File(t.Context(), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	owner := ""
	_, err = File(ctx, name, func(pid string) { owner = pid; cancel() })
	if !errors.Is(err, context.Canceled) || owner != strconv.Itoa(os.Getpid()) {
		t.Errorf("a lock that somebody holds: %v, owner %q; want %v, %d", err, owner, context.Canceled, os.Getpid())
	}
	unlock()
	if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file of a lock that nobody holds: %v", err)
	}
}
