package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// defaultKernelPackage is Debian's kernel for virtual machines: small, with
// virtio and the usual file systems as modules.
const defaultKernelPackage = "linux-image-cloud-amd64"

//go:embed kernel.sh
var kernelScript string

// Names in the directory of a kernel.
const (
	vmlinuxFile  = "vmlinux"
	bzImageFile  = "bzImage"
	modulesErofs = "modules.erofs"
)

// kernelMeta is the record of a kernel; paths are relative to the object.
type kernelMeta struct {
	Title  string `json:"title"`
	Kernel Kernel `json:"kernel"`
}

// addKernel gives the image its kernel: "" or "debian:PACKAGE" of a suite, or a path.
func (b *build) addKernel(ctx context.Context, kernel, modules, suite string) error {
	var meta kernelMeta
	var l *lease
	var err error
	if kernel == "" {
		kernel = kernelPackagePrefix + defaultKernelPackage
	}
	if name, ok := strings.CutPrefix(kernel, kernelPackagePrefix); ok {
		l, err = b.store.packagedKernel(ctx, suite, name, &meta)
	} else {
		l, err = b.store.fileKernel(ctx, kernel, modules, &meta)
	}
	if err != nil {
		return err
	}
	b.hold(l)
	b.meta.Kernel = l.ref
	k := meta.Kernel
	for _, p := range []*string{&k.Path, &k.BzImage, &k.Modules.Path} {
		if *p != "" {
			*p = filepath.Join(l.dir, *p)
		}
	}
	b.kernel = &k
	return nil
}

// packagedKernel is a kernel package, unpacked and not installed.
func (s *Store) packagedKernel(ctx context.Context, suite, name string, meta *kernelMeta) (*lease, error) {
	key := digest(kindKernel, []string{suite, s.mirror, name, kernelScript})
	return s.object(ctx, makeRef(kindKernel, key), meta, func(ctx context.Context, dir string) error {
		base, baseMeta, err := s.base(ctx, suite)
		if err != nil {
			return err
		}
		defer base.release()
		if err := s.reserve(kernelNeeds); err != nil {
			return err
		}
		say(ctx, "fetching the kernel %s, once", name)
		*meta = kernelMeta{Title: name}
		var image []byte
		modules, err := os.Create(filepath.Join(dir, modulesErofs))
		if err != nil {
			return err
		}
		defer modules.Close()
		t, err := newTree(modules)
		if err != nil {
			return err
		}
		var dep bytes.Buffer
		said, err := s.mmdebstrap(ctx, mmdebstrap{
			title:  baseMeta.Title,
			args:   slices.Concat(onBase, []string{suite, "-"}),
			script: kernelScript,
			env:    []string{"ATTEST_KERNEL=" + name},
			inputs: []func(io.Writer) error{unpack(filepath.Join(base.dir, baseRoot))},
			entry: func(h *tar.Header, r io.Reader) error {
				rest, ok := strings.CutPrefix(treePath(h.Name), "attest-kernel/out/")
				if !ok {
					return nil
				}
				if rest == "vmlinuz" {
					image, err = io.ReadAll(r)
					return err
				}
				if name, ok := strings.CutPrefix(rest, "modules"); ok {
					h.Name = "." + name
					if name == "/modules.dep" {
						r = io.TeeReader(r, &dep)
					}
					return t.add(h, r)
				}
				return nil
			},
		})
		if err != nil {
			return err
		}
		if err := checkModules(t.index, dep.Bytes(), said); err != nil {
			return &BuildError{Image: name, Phase: "looking at the kernel", Reason: err.Error()}
		}
		if err := s.writeKernel(ctx, dir, name, image, meta); err != nil {
			return err
		}
		return finishModules(dir, t, meta)
	})
}

// fileKernel is a kernel of the user's.
func (s *Store) fileKernel(ctx context.Context, path, modules string, meta *kernelMeta) (*lease, error) {
	image, err := os.ReadFile(path)
	if err != nil {
		return nil, &SpecError{Field: "kernel", Err: err}
	}
	var stamp string
	if modules != "" {
		if st, err := os.Stat(filepath.Join(modules, "modules.dep")); err != nil || !st.Mode().IsRegular() {
			return nil, specErrorf("modules", "%s has no modules.dep: it has to be lib/modules/RELEASE of the kernel, after depmod", modules)
		}
		if stamp, err = directoryStamp(modules); err != nil {
			return nil, &SpecError{Field: "modules", Err: err}
		}
	}
	sum := sha256.Sum256(image)
	key := digest(kindKernel, []string{hex.EncodeToString(sum[:]), stamp})
	return s.object(ctx, makeRef(kindKernel, key), meta, func(ctx context.Context, dir string) error {
		if err := s.reserve(4*int64(len(image)) + 64<<20); err != nil {
			return err
		}
		*meta = kernelMeta{Title: path}
		if err := s.writeKernel(ctx, dir, path, image, meta); err != nil {
			return &SpecError{Field: "kernel", Err: err}
		}
		if modules == "" {
			return nil
		}
		f, err := os.Create(filepath.Join(dir, modulesErofs))
		if err != nil {
			return err
		}
		defer f.Close()
		t, err := newTree(f)
		if err != nil {
			return err
		}
		if err := addDirectory(ctx, t, modules); err != nil {
			return err
		}
		return finishModules(dir, t, meta)
	})
}

// writeKernel puts a kernel into its directory, as it is and unpacked.
func (s *Store) writeKernel(ctx context.Context, dir, name string, image []byte, meta *kernelMeta) error {
	say(ctx, "unpacking the kernel")
	vmlinux, err := extractVmlinux(image)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	release, err := kernelRelease(image, vmlinux)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	sum := sha256.Sum256(vmlinux)
	meta.Kernel = Kernel{ID: hex.EncodeToString(sum[:20]), Release: release, Path: vmlinuxFile, PVH: hasPVH(vmlinux)}
	if err := os.WriteFile(filepath.Join(dir, vmlinuxFile), vmlinux, 0o644); err != nil {
		return err
	}
	if string(image[:4]) == string(vmlinux[:4]) {
		return nil
	}
	meta.Kernel.BzImage = bzImageFile
	return os.WriteFile(filepath.Join(dir, bzImageFile), image, 0o644)
}

// finishModules closes the file system of the modules. Its identity becomes
// part of the kernel's.
func finishModules(dir string, t *tree, meta *kernelMeta) error {
	name := filepath.Join(dir, modulesErofs)
	if len(t.index) == 0 { // all drivers are built in
		return os.Remove(name)
	}
	if err := t.w.Close(); err != nil {
		return err
	}
	var err error
	meta.Kernel.Modules, err = describeLayer(dir, modulesErofs)
	meta.Kernel.ID = digest("kernel+modules", []string{meta.Kernel.ID, meta.Kernel.Modules.ID})
	return err
}
