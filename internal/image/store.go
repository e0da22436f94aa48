package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/attest-vm/attest/internal/doctor"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/supervise"
)

// MirrorEnv names the environment variable that replaces Debian's mirror:
// everything comes from the URL in it, without the security archive. Empty:
// mmdebstrap's default, with security and updates.
const MirrorEnv = "ATTEST_DEBIAN_MIRROR"

// Store is a cache of images. Its methods can be called from any goroutine and
// from any number of processes on the same directory.
type Store struct {
	root   string // absolute
	mirror string
	run    runner
	sup    *supervise.Supervisor
}

// OpenStore opens the user's cache, $XDG_CACHE_HOME/attest. Builds start their
// tools through sup; without one the store can only look things up and remove.
func OpenStore(sup *supervise.Supervisor) (*Store, error) {
	root, err := DefaultRoot()
	if err != nil {
		return nil, err
	}
	return OpenStoreAt(root, sup)
}

// DefaultRoot is the directory of the user's cache.
func DefaultRoot() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("image cache: %w; set XDG_CACHE_HOME", err)
	}
	return filepath.Join(dir, "attest"), nil
}

// OpenStoreAt opens the cache in a directory, which is made if missing.
func OpenStoreAt(root string, sup *supervise.Supervisor) (*Store, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	for _, dir := range append([]string{"tmp", "lock"}, kinds...) {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return nil, fmt.Errorf("image cache: %w", err)
		}
	}
	return &Store{root: root, mirror: os.Getenv(MirrorEnv), run: supervised{sup}, sup: sup}, nil
}

// Root is the cache's directory.
func (s *Store) Root() string { return s.root }

// imageMeta is the record of an image: what it is made of. Layers and kernels
// are named by their objects, so that a record stays true wherever the cache is.
type imageMeta struct {
	ID       string    `json:"id"`
	Title    string    `json:"title"`
	Spec     Spec      `json:"spec"`
	Parts    []ref     `json:"parts"`             // layers, lowest first
	External *Layer    `json:"external,omitzero"` // the lowest layer, where it is a file of the user's
	Disk     *BaseDisk `json:"disk,omitempty"`
	Kernel   ref       `json:"kernel,omitempty"`
}

// layerMeta is the record of a base, layer or rootfs.
type layerMeta struct {
	Title string `json:"title"`
	Layer Layer  `json:"layer"` // Path is relative to the object
}

// Build returns the image that source asks for, from the cache or built. Files
// of the host that source names are read each time: another content is another
// image. See errors.go for what can go wrong.
func (s *Store) Build(ctx context.Context, source Source) (_ *Image, err error) {
	spec := source.spec()
	if err := spec.Check(); err != nil {
		return nil, err
	}
	if spec, err = spec.absolute(); err != nil {
		return nil, &SpecError{Err: err}
	}
	b := &build{store: s, spec: spec, title: spec.String()}
	defer func() {
		if err != nil {
			b.releaseAll()
			err = b.typed(ctx, err)
		}
	}()
	ctx, work := withWork(ctx, "image "+b.title)
	defer func() { work.Done(err) }()
	switch {
	case spec.Rootfs != nil:
		err = b.rootfs(ctx, spec.Rootfs)
	case spec.Disk != nil:
		err = b.disk(ctx, spec.Disk)
	default:
		err = b.debian(ctx, spec.debian())
	}
	if err == nil {
		err = b.addInitrd(spec.Kernel().Initrd)
	}
	if err != nil {
		return nil, err
	}
	return b.finish(ctx)
}

// typed makes what went wrong for no reason that is known the host's.
func (b *build) typed(ctx context.Context, err error) error {
	var kind interface{ Status() event.Status }
	var missing *doctor.MissingError
	if ctx.Err() != nil || errors.As(err, &kind) || errors.As(err, &missing) {
		return err
	}
	return &BuildError{Image: b.title, Phase: "building it", Err: err}
}

// build is one image under way.
type build struct {
	store *Store
	spec  Spec
	title string

	meta   imageMeta
	layers []Layer
	kernel *Kernel
	diskID string
	held   []*lease

	initrd, initrdID string // of the user's; empty: attest's
}

func (b *build) hold(l *lease) { b.held = append(b.held, l) }

func (b *build) releaseAll() {
	for _, l := range b.held {
		l.release()
	}
	b.held = nil
}

// addLayer puts an object's file system on top.
func (b *build) addLayer(l *lease, m layerMeta) {
	b.hold(l)
	m.Layer.Path = filepath.Join(l.dir, m.Layer.Path)
	b.meta.Parts = append(b.meta.Parts, l.ref)
	b.layers = append(b.layers, m.Layer)
}

// finish records the image.
func (b *build) finish(ctx context.Context) (*Image, error) {
	type identity struct {
		Layers       []string
		Kernel, Disk string
		Initrd       string `json:",omitempty"`
	}
	var id identity
	for _, l := range b.layers {
		id.Layers = append(id.Layers, l.ID)
	}
	if b.kernel != nil {
		id.Kernel = b.kernel.ID
	}
	if b.meta.Disk != nil {
		id.Disk = b.diskID
	}
	id.Initrd = b.initrdID
	b.meta.ID, b.meta.Title, b.meta.Spec = digest("image", id), b.title, b.spec
	// Two specs can give the same bits; each keeps its record and its title.
	key := digest("record", []string{b.meta.ID, digest("spec", b.spec.untitled())})
	l, err := b.store.object(ctx, makeRef(kindImage, key), &b.meta, func(context.Context, string) error { return nil })
	if err != nil {
		return nil, err
	}
	b.hold(l)
	return &Image{
		ID: b.meta.ID, Title: b.title, Spec: b.spec, Dir: l.dir,
		Layers: b.layers, Disk: b.meta.Disk, Kernel: b.kernel, Initrd: b.initrd,
		users: 1, held: b.held,
	}, nil
}
