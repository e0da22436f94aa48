package image

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// A Root is the root of an image as one file system on a disk of its own. It is
// never modified.
type Root struct {
	BaseDisk
	ID         string // of its contents, as far as they are known without reading it
	Filesystem string
}

// RootLabel is the label of the file systems of roots.
const RootLabel = "root"

// makeRoot is how the file systems of roots are made. Tables that a sparse file has as
// zeros are not written; ext4 has to be mounted with noinit_itable, too.
var makeRoot = map[string][]string{
	"ext4": {"mkfs.ext4", "-q", "-F", "-L", RootLabel, "-m", "0", "-b", "4096", "-i", "32768",
		"-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,packed_meta_blocks=1"},
	"xfs":   {"mkfs.xfs", "-q", "-f", "-K", "-L", RootLabel},
	"btrfs": {"mkfs.btrfs", "-q", "-f", "-K", "-L", RootLabel},
}

// RootFilesystems are those that a Root can have.
func RootFilesystems() []string { return []string{"ext4", "xfs", "btrfs"} }

const rootFile = "root.raw"

// rootMeta is the record of a root.
type rootMeta struct {
	Title string `json:"title"`
	Image string `json:"image"` // Image.ID
}

// MakeRoot returns the root of an image of layers on a disk of so many bytes, from the
// cache or made: fill puts the image's files into the empty file system in a raw
// file. It stays in the cache as long as the image does.
func (s *Store) MakeRoot(ctx context.Context, img *Image, filesystem string, size int64, fill func(ctx context.Context, path string) error) (_ *Root, err error) {
	args := makeRoot[filesystem]
	if args == nil || len(img.Layers) == 0 {
		return nil, fmt.Errorf("image %s: no root of %q can be made of it", img.Title, filesystem)
	}
	var layers []string
	for _, l := range img.Layers {
		layers = append(layers, l.ID)
	}
	key := digest(kindRoot, []any{layers, args, size})
	title := fmt.Sprintf("%s as %s", img.Title, filesystem)
	ctx, work := withWork(ctx, "root "+title)
	defer func() { work.Done(err) }()
	meta := rootMeta{Title: title, Image: img.ID}
	l, err := s.object(ctx, makeRef(kindRoot, key), &meta, func(ctx context.Context, dir string) error {
		if err := s.reserve(rootNeeds(img)); err != nil {
			return err
		}
		work.Say("copying the root to a disk of its own, once")
		path := filepath.Join(dir, rootFile)
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		err = f.Truncate(size)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
		if err := s.runTool(ctx, args[0], append(slices.Clone(args[1:]), path)...); err != nil {
			return fmt.Errorf("root of %s: %w", title, err)
		}
		return fill(ctx, path)
	})
	if err != nil {
		return nil, err
	}
	if !img.holdToo(l) {
		return nil, fmt.Errorf("image %s: already released", img.Title)
	}
	return &Root{BaseDisk{Path: filepath.Join(l.dir, rootFile), Format: "raw", Size: size}, key, filesystem}, nil
}

// rootNeeds is about how many bytes a root takes: its layers, and blocks that are
// not full.
func rootNeeds(img *Image) int64 {
	need := int64(64 << 20)
	for _, l := range img.Layers {
		need += l.Size * 3 / 2
	}
	return need
}
