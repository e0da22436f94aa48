package attest

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/attest-vm/attest/internal/tree"
)

// This file is what a configuration says of files of the host that lie over a machine,
// and what the host has of them.

// An overlay is one entry of Files or Mount.
type overlay struct {
	field  string // "mount", for errors
	target string // in the guest
	path   string // on the host; empty: content
	file   File   // of Files
}

func (o overlay) String() string { return fmt.Sprintf("%s[%q]", o.field, o.target) }

// overlays are all of a machine, each before those that lie in it.
func (m *MachineConfig) overlays() []overlay {
	var out []overlay
	for target, path := range m.Mount {
		out = append(out, overlay{field: "mount", target: target, path: path})
	}
	for target, f := range m.Files {
		out = append(out, overlay{field: "files", target: target, path: f.Path, file: f})
	}
	slices.SortFunc(out, func(a, b overlay) int { return strings.Compare(a.target, b.target) })
	return out
}

// emptyAtBoot are the directories in which guests mount empty file systems.
var emptyAtBoot = regexp.MustCompile(`^/(dev|proc|run|sys|tmp)(/|$)`)

func (m *MachineConfig) normalizeOverlays() error {
	seen := map[string]bool{}
	for _, o := range m.overlays() {
		reason := ""
		switch {
		case !path.IsAbs(o.target) || path.Clean(o.target) != o.target || strings.ContainsRune(o.target, 0):
			reason = "want a clean absolute path in the guest"
		case o.target == "/":
			reason = "want a path below /, such as /opt/app"
		case emptyAtBoot.MatchString(o.target):
			reason = "the guest mounts an empty file system there when it boots; choose another place, such as below /opt or /etc"
		case seen[o.target]:
			reason = "it is in files, too"
		case o.field == "mount" && o.path == "":
			reason = "want the path of a file or a directory of the host"
		case o.file.Content != "" && o.file.Path != "":
			reason = "it has both content and path; leave out one of the two"
		case o.file.Mode > 0o7777:
			reason = fmt.Sprintf("mode %#o is not permission bits", o.file.Mode)
		}
		if reason != "" {
			return fmt.Errorf("%s: %s", o, reason)
		}
		seen[o.target] = true
	}
	return nil
}

// resolveOverlays makes the host's paths independent of where attest runs.
func (m *MachineConfig) resolveOverlays(dir string) error {
	abs := func(p string) (string, error) {
		if filepath.IsAbs(p) {
			return p, nil
		}
		return filepath.Abs(filepath.Join(dir, p))
	}
	m.Files, m.Mount = maps.Clone(m.Files), maps.Clone(m.Mount)
	for target, f := range m.Files {
		if f.Path == "" {
			continue
		}
		var err error
		if f.Path, err = abs(f.Path); err != nil {
			return err
		}
		m.Files[target] = f
	}
	for target, p := range m.Mount {
		p, err := abs(p)
		if err != nil {
			return err
		}
		m.Mount[target] = p
	}
	return nil
}

// checkOverlays refuses files that the host does not have.
func (m MachineConfig) checkOverlays() error {
	for _, o := range m.overlays() {
		if o.path == "" {
			continue
		}
		if reason := lack(o.path, o.field == "files"); reason != "" {
			return &ConfigError{fmt.Sprintf("machine %q", m.Name), fmt.Sprintf("%s: %s: %s", o, o.path, reason)}
		}
	}
	return nil
}

// checkFiles is checkOverlays, and the same for the files that the machine's image and
// its disks are made of.
func (m MachineConfig) checkFiles() error {
	if err := m.checkOverlays(); err != nil {
		return err
	}
	if m.Image != nil {
		if err := checkImageFiles(m.Image); err != nil {
			return &ConfigError{fmt.Sprintf("machine %q: image", m.Name), err.Error()}
		}
	}
	for i, d := range m.Disks {
		if err := checkImageFiles(d); err != nil {
			return &ConfigError{fmt.Sprintf("machine %q: disks[%d]", m.Name, i), err.Error()}
		}
	}
	return nil
}

// checkImageFiles refuses an image of a file that the host does not have.
func checkImageFiles(img Image) error {
	s := img.spec()
	var path string
	switch {
	case s.Rootfs != nil:
		path = s.Rootfs.Path
	case s.Disk != nil:
		path = s.Disk.Path
	case s.Debian != nil:
		for _, target := range slices.Sorted(maps.Keys(s.Debian.Files)) {
			f := s.Debian.Files[target]
			if reason := lack(f.Path, true); f.Path != "" && reason != "" {
				return fmt.Errorf("files[%q]: %s: %s", target, f.Path, reason)
			}
		}
	}
	if path == "" {
		return nil
	}
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("%s: %s", path, lack(path, false))
	}
	return nil // what it is, is looked at where it is used
}

// lack says why a path of the host cannot be used; empty: it can.
func lack(path string, asFile bool) string {
	info, err := os.Stat(path)
	var reason *fs.PathError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "no such file or directory"
	case errors.As(err, &reason):
		return reason.Err.Error()
	case asFile && info.IsDir():
		return "a directory; mount takes directories"
	case !info.Mode().IsRegular() && !info.IsDir():
		return "neither a file nor a directory"
	}
	return ""
}

// trees are the lists of the host's files that were made last, so that the labs of a
// host read a file once.
type trees struct {
	mu   sync.Mutex
	last map[string]tree.Tree
}

// scan lists a file or a tree of the host.
func (t *trees) scan(path string) (tree.Tree, error) {
	t.mu.Lock()
	before := t.last[path]
	t.mu.Unlock()
	now, err := tree.Scan(path, before)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last == nil {
		t.last = map[string]tree.Tree{}
	}
	t.last[path] = now
	return now, nil
}

// list is what an overlay has now. inside are the targets that lie in it and have
// overlays of their own.
func (t *trees) list(o overlay, inside []string) (tree.Tree, error) {
	if o.path == "" {
		return tree.OfContent(o.file.Content, fs.FileMode(o.file.mode(0o644))), nil
	}
	now, err := t.scan(o.path)
	if err != nil {
		return nil, err
	}
	if e, ok := now["."]; ok && e.Mode.IsRegular() && o.file.Mode != 0 {
		e.Mode = fs.FileMode(o.file.Mode).Perm()
		now = maps.Clone(now)
		now["."] = e
	}
	for _, target := range inside {
		now = now.Without(strings.TrimPrefix(target, o.target+"/"))
	}
	return now, nil
}

func (f File) mode(otherwise uint32) uint32 {
	if f.Mode != 0 {
		return f.Mode
	}
	return otherwise
}
