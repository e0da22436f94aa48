package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/flock"
)

// Sweep removes the state directories below root that no run holds any more,
// which is what a run leaves when it is killed together with its supervisor,
// and kills the processes that still belong to them. Empty root: StateRoot().
// Directories that Keep kept stay. It is cheap when there is nothing to do.
func Sweep(ctx context.Context, root string) (removed []string, err error) {
	if root == "" {
		if root, err = StateRoot(); err != nil {
			return nil, err
		}
	}
	dead, err := claimDead(root)
	for _, f := range dead {
		defer f.Close()
		if cerr := ctx.Err(); cerr != nil {
			return removed, cerr
		}
		dir := f.Name()
		kerr := killBelonging(dir, killTimeout)
		if rerr := RemoveTree(dir); rerr != nil {
			err = errors.Join(err, fmt.Errorf("remove %s: %w", dir, errors.Join(rerr, kerr)))
			continue
		}
		removed = append(removed, dir)
		err = errors.Join(err, kerr)
	}
	return removed, err
}

// claimDead opens and locks every state directory whose lock is free.
func claimDead(root string) ([]*os.File, error) {
	unlock, err := lockRoot(root)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer unlock()
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, err
	}
	var dead []*os.File
	for _, e := range entries {
		dir := filepath.Join(root, e.Name())
		if !isID(e.Name()) || checkOwned(dir) != nil || kept(dir) {
			continue
		}
		f, err := os.Open(dir)
		if err != nil {
			continue // gone by itself
		}
		if flock.Lock(f, unix.LOCK_EX|unix.LOCK_NB) != nil {
			f.Close()
			continue
		}
		dead = append(dead, f)
	}
	return dead, nil
}
