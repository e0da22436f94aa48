package boot

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/cavaliergopher/cpio"

	"github.com/attest-vm/attest/internal/atomicfile"
)

// Initramfs is what goes into the first file system of a guest.
type Initramfs struct {
	// Binary is the attest executable that becomes /init; it must be static. Its
	// debug information is left out.
	Binary string
	// Modules is the kernel's lib/modules/<release>: a directory, or an
	// uncompressed erofs image of one. Empty: a kernel that has all it needs built in.
	Modules string
	// Filesystems are the file systems that the guest's root may be of, besides
	// erofs and ext4: "xfs", "btrfs", "squashfs", … (see ProbeFilesystem). Their
	// modules are loaded only when one is found.
	Filesystems []string
	// Optional are further ones, of which those that the kernel has go in.
	Optional []string
	// Drivers are further modules that are loaded at once, such as a network card's.
	Drivers []string
}

// Where modules are in the initramfs: moduleRoot/boot, and moduleRoot/<file
// system>. Names begin with a number that gives the order.
const moduleRoot = "modules"

// memoDir has, for each set of inputs, the initramfs that was made of it.
const memoDir = "by-input"

// Build returns the initramfs as a file in the user's cache, made if it is not
// there yet. The file's name is the digest of its content. It is never modified;
// Prune may remove it, and the next Build makes it again. owner, which may be nil, has
// what is not finished.
func (i Initramfs) Build(ctx context.Context, owner Owner) (string, error) {
	dir, err := cacheDir("initramfs")
	if err != nil {
		return "", err
	}
	return i.build(ctx, dir, owner)
}

func (i Initramfs) build(ctx context.Context, dir string, owner Owner) (string, error) {
	if i.Binary == "" {
		return "", errors.New("initramfs: no binary for /init")
	}
	// Reading 20 MB to find out that they are the same takes longer than all
	// the rest, so what was built is remembered by the inputs' identity.
	key, err := i.identity()
	if err != nil {
		return "", err
	}
	memo := filepath.Join(dir, memoDir, key)
	if name, err := os.Readlink(memo); err == nil {
		path := filepath.Join(dir, filepath.Base(name))
		if _, err := os.Stat(path); err == nil {
			used(path)
			return path, nil
		}
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	path, err := i.buildIn(dir, owner)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(memo), 0o755); err != nil {
		return "", fmt.Errorf("initramfs: %w", err)
	}
	if err := atomicfile.Symlink(filepath.Join("..", filepath.Base(path)), memo); err != nil {
		return "", fmt.Errorf("initramfs: %w", err)
	}
	pruneDir(dir) // what cannot be removed takes space, and harms nothing else
	return path, nil
}

// buildIn writes the archive below dir under the name of its digest.
func (i Initramfs) buildIn(dir string, owner Owner) (path string, err error) {
	tmp, err := newScratch(dir, owner)
	if err != nil {
		return "", fmt.Errorf("initramfs: %w", err)
	}
	defer tmp.remove()
	f, err := os.Create(filepath.Join(tmp.dir, "initramfs"))
	if err != nil {
		return "", fmt.Errorf("initramfs: %w", err)
	}
	defer f.Close()
	digest := sha256.New()
	w := bufio.NewWriterSize(io.MultiWriter(f, digest), 1<<20)
	if err := i.write(w); err != nil {
		return "", err
	}
	if err := errors.Join(w.Flush(), f.Chmod(0o444), f.Close()); err != nil {
		return "", fmt.Errorf("initramfs: %w", err)
	}
	path = filepath.Join(dir, hex.EncodeToString(digest.Sum(nil))[:32]+".cpio")
	if err := place(f.Name(), path); err != nil {
		return "", fmt.Errorf("initramfs: %w", err)
	}
	return path, nil
}

// place gives a finished file the name of its content. A file that has the name already stays:
// another process may be about to start a VMM, which may open that file and not another
// one of the same name (vmm.View).
func place(file, path string) error {
	if os.Link(file, path) == nil {
		return nil
	}
	ours, err := os.Stat(file)
	if err != nil {
		return err
	}
	if there, err := os.Stat(path); err == nil && there.Size() == ours.Size() {
		used(path)
		return nil
	}
	return os.Rename(file, path) // what is there is damaged, or the file system has no links
}

// write makes the archive: uncompressed, because an emulated CPU copies a
// megabyte in a fraction of the time in which it would decompress it. Equal
// inputs give equal bytes.
func (i Initramfs) write(w io.Writer) error {
	c := cpio.NewWriter(w)
	binary, err := strippedELF(i.Binary)
	if err != nil {
		return err
	}
	// Mount points first; the kernel itself gives /dev/console (its default
	// rootfs has it), so messages of the first instant are seen.
	for _, dir := range []string{"dev", "proc", "sys", "run", "mnt", "root", moduleRoot} {
		if err := c.WriteHeader(&cpio.Header{Name: dir, Mode: cpio.TypeDir | 0o755, Links: 2}); err != nil {
			return fmt.Errorf("initramfs: %w", err)
		}
	}
	if err := writeFile(c, "init", 0o755, binary); err != nil {
		return err
	}
	if i.Modules != "" {
		if err := i.writeModules(c); err != nil {
			return err
		}
	}
	if err := c.Close(); err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	return nil
}

func (i Initramfs) writeModules(c *cpio.Writer) error {
	tree, err := openModules(i.Modules)
	if err != nil {
		return err
	}
	defer tree.close()
	for _, name := range i.Drivers {
		if _, ok := tree.paths[name]; !ok && !tree.builtin[name] {
			return fmt.Errorf("initramfs: the kernel of %s has no driver %s; use another kernel", i.Modules, name)
		}
	}
	if err := writeModuleSet(c, tree, "boot", slices.Concat(bootModules, i.Drivers), nil); err != nil {
		return err
	}
	if err := writeModuleSet(c, tree, vsockSet, vsockModules, bootModules); err != nil {
		return err
	}
	for n, name := range slices.Concat(i.Filesystems, i.Optional) {
		if tree.builtin[name] {
			continue
		}
		if _, ok := tree.paths[name]; !ok {
			if n >= len(i.Filesystems) {
				continue
			}
			return fmt.Errorf("initramfs: the kernel of %s does not support the file system %s of the image; use another kernel", i.Modules, name)
		}
		names := append(slices.Clone(filesystemModules[name]), name)
		if err := writeModuleSet(c, tree, name, names, nil); err != nil {
			return err
		}
	}
	return nil
}

// writeModuleSet writes modules with all that they depend on, but for those that come
// with others, which are loaded before.
func writeModuleSet(c *cpio.Writer, tree *moduleTree, set string, names, before []string) error {
	modules, err := tree.closure(names)
	if err != nil {
		return err
	}
	loaded, err := tree.closure(before)
	if err != nil {
		return err
	}
	modules = slices.DeleteFunc(modules, func(m module) bool {
		return slices.ContainsFunc(loaded, func(l module) bool { return l.name == m.name })
	})
	dir := moduleRoot + "/" + set
	if err := c.WriteHeader(&cpio.Header{Name: dir, Mode: cpio.TypeDir | 0o755, Links: 2}); err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	for n, m := range modules {
		if err := writeFile(c, fmt.Sprintf("%s/%03d-%s.ko", dir, n, m.name), 0o644, m.data); err != nil {
			return err
		}
	}
	return nil
}

func writeFile(c *cpio.Writer, name string, mode cpio.FileMode, data []byte) error {
	if err := c.WriteHeader(&cpio.Header{Name: name, Mode: cpio.TypeReg | mode, Size: int64(len(data))}); err != nil {
		return fmt.Errorf("initramfs: %s: %w", name, err)
	}
	if _, err := c.Write(data); err != nil {
		return fmt.Errorf("initramfs: %s: %w", name, err)
	}
	return nil
}

// identity is a digest of which files go in, by device, inode, size and times
// of modification and change: enough to notice every replacement and every
// write, without reading them.
func (i Initramfs) identity() (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "initramfs 3 %q %q %q %q %q\n", i.Filesystems, i.Optional, i.Drivers, bootModules, vsockModules)
	paths := []string{i.Binary}
	if st, err := os.Stat(i.Modules); err == nil && st.IsDir() {
		tree, err := openModules(i.Modules)
		if err != nil {
			return "", err
		}
		for _, name := range slices.Sorted(maps.Keys(tree.paths)) {
			paths = append(paths, filepath.Join(i.Modules, tree.paths[name]))
		}
	} else if i.Modules != "" {
		paths = append(paths, i.Modules)
	}
	for _, path := range paths {
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			return "", fmt.Errorf("initramfs: %s: %w", path, err)
		}
		fmt.Fprintf(h, "%s %d %d %d %v %v\n", path, st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim)
	}
	return hex.EncodeToString(h.Sum(nil))[:32], nil
}

// strippedELF reads a static executable without what the kernel does not load:
// symbols and debug information, a third of a binary that go build makes.
func strippedELF(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("initramfs: %w", err)
	}
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("initramfs: %s: not a program for /init: %w", path, err)
	}
	if f.Class != elf.ELFCLASS64 || f.Data != elf.ELFDATA2LSB {
		return nil, fmt.Errorf("initramfs: %s: not a 64-bit little-endian program", path)
	}
	end := uint64(0)
	for _, p := range f.Progs {
		switch p.Type {
		case elf.PT_INTERP:
			return nil, fmt.Errorf("initramfs: %s: is dynamically linked, so it cannot run where there is no libc; build it with CGO_ENABLED=0", path)
		case elf.PT_LOAD:
			end = max(end, p.Off+p.Filesz)
		}
	}
	if end < 64 || end > uint64(len(data)) {
		return nil, fmt.Errorf("initramfs: %s: truncated: segments end at %d of %d bytes", path, end, len(data))
	}
	data = data[:end:end]
	clear(data[0x28:0x30]) // e_shoff
	clear(data[0x3a:0x40]) // e_shentsize, e_shnum, e_shstrndx
	return data, nil
}
