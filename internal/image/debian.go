package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
)

// basePackages are what every Debian image has beyond the packages of priority
// required and apt: an init with a login manager and a bus, the tools that
// tests reach for first, and what waits for hardware.
var basePackages = []string{
	"ca-certificates", "curl", "dbus", "iproute2", "iputils-ping", "kmod", "libpam-systemd",
	"netcat-openbsd", "procps", "systemd", "systemd-sysv", "udev",
}

//go:embed base.sh
var baseScript string

//go:embed derive.sh
var deriveScript string

// Names in the directory of a base.
const (
	baseErofs = "base.erofs"
	baseRoot  = "root.tar.zst"
	baseIndex = "index.json.zst"
)

// How much room builds take at their peak: the unpacked root and all that is made of it.
const (
	baseNeeds   = 900 << 20
	deriveNeeds = 1200 << 20
	kernelNeeds = 900 << 20
)

// listsState says how far to trust the package lists of a base: stable releases
// change every few weeks, security fixes come at any time.
func listsState(age time.Duration) string {
	switch {
	case age < time.Hour:
		return "fresh" // what they lack does not exist
	case age < 7*24*time.Hour:
		return "aged" // new ones only if something is missing
	}
	return "old"
}

// baseMeta is the record of a base.
type baseMeta struct {
	layerMeta
	Suite string    `json:"suite"`
	Built time.Time `json:"built"`
}

// debian puts a Debian image together: the base, what the spec adds, a kernel.
func (b *build) debian(ctx context.Context, spec *Debian) error {
	d, err := spec.normalised().resolveFiles()
	if err != nil {
		return err
	}
	base, meta, err := b.store.base(ctx, d.Suite)
	if err != nil {
		return err
	}
	b.addLayer(base, meta.layerMeta)
	if len(d.Packages)+len(d.Files)+len(d.Run) > 0 {
		l, m, err := b.store.derive(ctx, b.title, base, meta, d)
		if err != nil {
			return err
		}
		b.addLayer(l, m)
	}
	return b.addKernel(ctx, d.Kernel, d.Modules, d.Suite)
}

// base is the base image of a suite.
func (s *Store) base(ctx context.Context, suite string) (*lease, baseMeta, error) {
	var meta baseMeta
	key := digest(kindBase, []any{suite, s.mirror, runtime.GOARCH, basePackages, baseScript})
	l, err := s.object(ctx, makeRef(kindBase, key), &meta, func(ctx context.Context, dir string) error {
		meta = baseMeta{Suite: suite, Built: time.Now().UTC()}
		meta.Title = "debian:" + suite
		return s.buildBase(ctx, dir, suite, &meta)
	})
	return l, meta, err
}

// aptPath reports whether a file is what apt downloaded: needed to build on a
// base, useless in a guest, which has no way to the mirror.
func aptPath(name string) bool {
	for _, dir := range []string{"var/lib/apt/lists/", "var/cache/apt/"} {
		if rest, ok := strings.CutPrefix(name, dir); ok {
			return rest != "partial" && rest != "archives" && rest != "archives/partial" && rest != "auxfiles"
		}
	}
	return false
}

// buildBase makes the three files of a base out of one run of mmdebstrap.
func (s *Store) buildBase(ctx context.Context, dir, suite string, meta *baseMeta) (err error) {
	if err := s.reserve(baseNeeds); err != nil {
		return err
	}
	say(ctx, "building the base image of Debian %s, once", suite)
	image, err := os.Create(filepath.Join(dir, baseErofs))
	if err != nil {
		return err
	}
	defer image.Close()
	t, err := newTree(image)
	if err != nil {
		return err
	}
	root, err := createZstd(filepath.Join(dir, baseRoot))
	if err != nil {
		return err
	}
	defer root.Close()
	copied := tar.NewWriter(root)
	args := []string{"--variant=minbase", "--include=" + strings.Join(basePackages, ","), "--skip=cleanup/apt/lists", suite, "-"}
	if s.mirror != "" {
		args = append(args, s.mirror)
	}
	status, err := s.mmdebstrap(ctx, mmdebstrap{title: meta.Title, args: args, script: baseScript, entry: func(h *tar.Header, r io.Reader) error {
		name := treePath(h.Name)
		if strings.HasPrefix(name, "dev/") {
			// The kernel fills /dev, and mmdebstrap does it in its builds.
			return nil
		}
		if err := copied.WriteHeader(h); err != nil {
			return err
		}
		if aptPath(name) {
			_, err := io.Copy(copied, r)
			return err
		}
		return t.add(h, io.TeeReader(r, copied))
	}})
	if err != nil {
		return err
	}
	if err := checkSystem(t.index, status); err != nil {
		return &BuildError{Image: meta.Title, Phase: "looking at the base image", Reason: err.Error()}
	}
	if err := errors.Join(copied.Close(), root.Close(), t.w.Close()); err != nil {
		return err
	}
	x, err := createZstd(filepath.Join(dir, baseIndex))
	if err != nil {
		return err
	}
	if err := errors.Join(t.index.encode(x), x.Close()); err != nil {
		return err
	}
	st, err := os.Stat(image.Name())
	if err != nil {
		return err
	}
	// The index has the digest of every file: no need to read all of it again.
	meta.Layer = Layer{ID: digest("tree", t.index), Path: baseErofs, Format: "erofs", Size: st.Size()}
	return nil
}

// describeLayer is the record of an erofs image that was just made.
func describeLayer(dir, name string) (Layer, error) {
	id, size, err := fileDigest(filepath.Join(dir, name))
	return Layer{ID: id, Path: name, Format: "erofs", Size: size}, err
}

// derive is the layer of what a spec adds to a base. Its key has the base's
// contents in it: a base that was built anew gets new layers.
func (s *Store) derive(ctx context.Context, title string, base *lease, baseMeta baseMeta, d Debian) (*lease, layerMeta, error) {
	var meta layerMeta
	d.Boot, d.Root, d.RootSize = Boot{}, "", 0 // no part of the layer
	key := digest(kindLayer, []any{baseMeta.Layer.ID, d.keyed(), deriveScript})
	l, err := s.object(ctx, makeRef(kindLayer, key), &meta, func(ctx context.Context, dir string) error {
		meta = layerMeta{Title: title}
		return s.buildLayer(ctx, dir, base, baseMeta, d, &meta)
	})
	return l, meta, err
}

const layerErofs = "layer.erofs"

func (s *Store) buildLayer(ctx context.Context, dir string, base *lease, baseMeta baseMeta, d Debian, meta *layerMeta) error {
	if err := s.reserve(deriveNeeds); err != nil {
		return err
	}
	say(ctx, "building on the base image")
	x, err := openIndex(filepath.Join(base.dir, baseIndex))
	if err != nil {
		return err
	}
	lower, closer, err := openErofs(filepath.Join(base.dir, baseErofs))
	if err != nil {
		return err
	}
	defer closer.Close()
	image, err := os.Create(filepath.Join(dir, layerErofs))
	if err != nil {
		return err
	}
	defer image.Close()
	diff, err := newDifference(x, lower, image)
	if err != nil {
		return err
	}
	var files string
	if len(d.Files)+len(d.Run) > 0 {
		files = "1"
	}
	status, err := s.mmdebstrap(ctx, mmdebstrap{
		title:  meta.Title,
		run:    d.Run,
		args:   slices.Concat(onBase, []string{d.Suite, "-"}),
		script: deriveScript,
		env: []string{
			"ATTEST_PACKAGES=" + strings.Join(d.Packages, " "), "ATTEST_LISTS=" + listsState(time.Since(baseMeta.Built)),
			"ATTEST_FILES=" + files, fmt.Sprintf("ATTEST_RUN=%d", len(d.Run)),
		},
		inputs: []func(io.Writer) error{unpack(filepath.Join(base.dir, baseRoot)), d.writeFiles},
		entry: func(h *tar.Header, r io.Reader) error {
			if name := treePath(h.Name); strings.HasPrefix(name, "dev/") || aptPath(name) {
				return nil
			}
			return diff.add(h, r)
		},
	})
	if err != nil {
		return err
	}
	if err := parseStatus(status).check(d.Packages); err != nil {
		return &BuildError{Image: meta.Title, Phase: "looking at the image", Reason: err.Error()}
	}
	if err := diff.finish(); err != nil {
		return err
	}
	meta.Layer, err = describeLayer(dir, layerErofs)
	return err
}

// onBase are the arguments that make mmdebstrap start from a base, which comes
// as a tar on descriptor 3.
var onBase = []string{
	"--variant=custom", "--skip=update,cleanup/apt/lists",
	`--setup-hook=tar -C "$1" --numeric-owner --xattrs --xattrs-include='*' -xf - <&3`,
}

// unpack writes the contents of a zstd file.
func unpack(name string) func(io.Writer) error {
	return func(w io.Writer) error {
		r, err := openZstd(name)
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.Copy(w, r)
		return err
	}
}

// writeFiles writes the files and run lines as a tar.
func (d Debian) writeFiles(w io.Writer) error {
	t := tar.NewWriter(w)
	put := func(name string, mode, size int64, content io.Reader) error {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: size, ModTime: time.Now(), Format: tar.FormatPAX}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		_, err := io.Copy(t, content)
		return err
	}
	text := func(name string, mode int64, content string) error {
		return put(name, mode, int64(len(content)), strings.NewReader(content))
	}
	for _, name := range slices.Sorted(maps.Keys(d.Files)) {
		f := d.Files[name]
		var err error
		if f.Path != "" {
			err = d.ofHost(name, func(size int64, content io.Reader) error { return put("."+name, int64(f.Mode), size, content) })
		} else {
			err = text("."+name, int64(f.Mode), f.Content)
		}
		if err != nil {
			return err
		}
	}
	for i, line := range d.Run {
		if err := text(fmt.Sprintf("./tmp/attest-run/%d", i), 0o700, line+"\n"); err != nil {
			return err
		}
	}
	return t.Close()
}

// ofHost has take read a file of the host, whose content has to be the one that the key of the image
// says.
func (d Debian) ofHost(name string, take func(size int64, content io.Reader) error) error {
	f, err := os.Open(d.Files[name].Path)
	if err != nil {
		return &SpecError{Field: fmt.Sprintf("files[%q]", name), Err: err}
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	h := sha256.New()
	if err := take(st.Size(), io.TeeReader(io.LimitReader(f, st.Size()), h)); err != nil {
		return err
	}
	if hexDigest(h) != d.sums[name] {
		return &SpecError{Field: fmt.Sprintf("files[%q]", name), Err: fmt.Errorf("%s was changed while the image was built; try again", f.Name())}
	}
	return nil
}

func openIndex(name string) (index, error) {
	r, err := openZstd(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	x, err := decodeIndex(r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return x, nil
}

// zstdFile is a compressed file; Close can be called twice.
type zstdFile struct {
	*zstd.Encoder
	f *os.File
}

func createZstd(name string) (*zstdFile, error) {
	f, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	e, err := zstd.NewWriter(f, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		f.Close()
		return nil, err
	}
	return &zstdFile{e, f}, nil
}

func (z *zstdFile) Close() error {
	if z.f == nil {
		return nil
	}
	err := errors.Join(z.Encoder.Close(), z.f.Close())
	z.f = nil
	return err
}

type zstdReader struct {
	*zstd.Decoder
	f *os.File
}

// newZstdReader reads what createZstd writes, whose windows are small.
func newZstdReader(r io.Reader) (*zstd.Decoder, error) {
	return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
}

func openZstd(name string) (*zstdReader, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	d, err := newZstdReader(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &zstdReader{d, f}, nil
}

func (z *zstdReader) Close() error {
	z.Decoder.Close()
	return z.f.Close()
}
