package boot

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
)

// A system with systemd empties /tmp while it boots (systemd-tmpfiles, the lines
// "D /tmp" of tmp.conf). By then the agent has been answering for seconds, and a
// test may have put something there. So /tmp is emptied here, before the agent
// starts, and systemd-tmpfiles is told to make the directory but to leave what is in it.

const tmpfilesName = "tmp.conf"

var emptyingTmp = regexp.MustCompile(`(?m)^D(!?[ \t]+/tmp[ \t])`)

// emptyTmp does it in the root at dir, if the system there would.
func emptyTmp(dir string) error {
	if _, err := os.Lstat(filepath.Join(dir, "etc/tmpfiles.d", tmpfilesName)); err == nil {
		return nil // /etc wins over /run: the image has its own setting
	}
	config, err := os.ReadFile(filepath.Join(dir, "usr/lib/tmpfiles.d", tmpfilesName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || !emptyingTmp.Match(config) {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(dir, "tmp"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, "tmp", e.Name())); err != nil {
			return err
		}
	}
	run := filepath.Join(dir, "run/tmpfiles.d")
	if err := os.MkdirAll(run, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(run, tmpfilesName), emptyingTmp.ReplaceAll(config, []byte("d$1")), 0o644)
}
