package boot

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// cacheDir is a directory of the user's cache, made if missing.
func cacheDir(name string) (string, error) {
	base, err := os.UserCacheDir() // $XDG_CACHE_HOME, or $HOME/.cache
	if err != nil {
		return "", fmt.Errorf("cache: %w", err)
	}
	dir := filepath.Join(base, "attest", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("cache: %w", err)
	}
	return dir, nil
}

// replaceSymlink makes link point to target, whatever was there before.
func replaceSymlink(target, link string) error {
	tmp := fmt.Sprintf("%s.%x", link, rand.Uint64())
	if err := os.Symlink(target, tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, link); err != nil {
		os.Remove(tmp)
		return err
	}
	return nil
}
