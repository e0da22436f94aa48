package tarfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// keepOpen is how many directories of a chain are open at once, which are files of
// this process's.
const keepOpen = 64

// A chain is the way from a root to a directory below it, of real directories only: a
// link would lead out of the copy. They stay what they are, because no entry removes
// a directory. The entries of a tree come one after the other, so the last ones of the
// way stay open: each entry costs the difference, and not its depth.
type chain struct {
	root  *os.Root
	names []string
	open  []*os.Root // of these names; nil for all but the last
	opens int        // how many were opened so far
}

// enter opens the directory that an entry belongs in, which belongs to the chain.
func (c *chain) enter(name string) (in *os.Root, base string, err error) {
	dir, base := path.Split(name)
	var parts []string
	if dir != "" {
		parts = strings.Split(strings.TrimSuffix(dir, "/"), "/")
	}
	same := 0
	for same < min(len(parts), len(c.names)) && parts[same] == c.names[same] {
		same++
	}
	for same > 0 && c.open[same-1] == nil {
		same--
	}
	c.cut(same)
	in = c.root
	if same > 0 {
		in = c.open[same-1]
	}
	for _, part := range parts[same:] {
		if in, err = realDir(in, part); err != nil {
			return nil, "", fmt.Errorf("the copied stream has an entry %q: %w", name, err)
		}
		c.push(part, in)
		c.opens++
	}
	return in, base, nil
}

func (c *chain) push(name string, dir *os.Root) {
	c.names, c.open = append(c.names, name), append(c.open, dir)
	if i := len(c.open) - 1 - keepOpen; i >= 0 && c.open[i] != nil {
		c.open[i].Close()
		c.open[i] = nil
	}
}

// cut leaves n names.
func (c *chain) cut(n int) {
	for _, dir := range c.open[n:] {
		if dir != nil {
			dir.Close()
		}
	}
	c.names, c.open = c.names[:n], c.open[:n]
}

func (c *chain) close() { c.cut(0) }

// realDir opens a directory that is not a link to one.
func realDir(in *os.Root, name string) (*os.Root, error) {
	fi, err := in.Lstat(name)
	if err != nil {
		return nil, quoted(err)
	}
	if !fi.IsDir() {
		return nil, fmt.Errorf("%q is not a directory", name)
	}
	dir, err := in.OpenRoot(name)
	return dir, quoted(err)
}

// OpenDir opens a directory below out, which is made with all above it. A symbolic
// link on the way is an error, also one that leads to a directory below out: it may be
// part of an earlier copy, and so a guest's.
func OpenDir(out *os.Root, dir string) (*os.Root, error) {
	clean := path.Clean(dir)
	if !filepath.IsLocal(clean) {
		return nil, fmt.Errorf("%q is not below the output directory", dir)
	}
	in, err := out.OpenRoot(".")
	if err != nil || clean == "." {
		return in, err
	}
	for part := range strings.SplitSeq(clean, "/") {
		if err := in.Mkdir(part, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			in.Close()
			return nil, quoted(err)
		}
		next, err := realDir(in, part)
		in.Close()
		if err != nil {
			return nil, fmt.Errorf("directory %q: %w; a copy may not be made through links", dir, err)
		}
		in = next
	}
	return in, nil
}

// Create makes a file below out for writing, in a directory as OpenDir makes it. A
// file that is there is emptied; a link makes room.
func Create(out *os.Root, name string) (*os.File, error) {
	dir, base := path.Split(path.Clean(name))
	in, err := OpenDir(out, path.Clean(dir))
	if err != nil {
		return nil, err
	}
	defer in.Close()
	f, err := create(in, base, 0o666)
	return f, quoted(err)
}
