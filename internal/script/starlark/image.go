package starlark

import (
	"fmt"
	"path/filepath"

	sl "go.starlark.net/starlark"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/access"
	"github.com/attest-vm/attest/internal/event"
	guestimage "github.com/attest-vm/attest/internal/image"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script"
)

// An image is what debian(…), rootfs(…) and disk(…) return.
type image struct {
	source attest.Image
	key    string
	attrs  sl.StringDict // what was given
}

var _ sl.HasAttrs = (*image)(nil)

func (i *image) String() string        { return "<image " + i.source.String() + ">" }
func (i *image) Type() string          { return "image" }
func (i *image) Freeze()               { i.attrs.Freeze() }
func (i *image) Truth() sl.Bool        { return true }
func (i *image) Hash() (uint32, error) { return sl.String(i.key).Hash() }
func (i *image) AttrNames() []string   { return i.attrs.Keys() }

func (i *image) Attr(name string) (sl.Value, error) {
	if v, ok := i.attrs[name]; ok {
		return v, nil
	}
	return nil, nil
}

// makeImage is debian(…), rootfs(…) and disk(…), by the table of operations.
func (l *loader) makeImage(f operation.ImageFunction) func(*sl.Thread, *sl.Builtin, sl.Tuple, []sl.Tuple) (sl.Value, error) {
	return func(t *sl.Thread, _ *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
		th := threadOf(t)
		bound, err := th.bind(t, f.Operation, args, kwargs)
		if err != nil {
			return nil, err
		}
		source, err := f.Make(bound)
		if err != nil {
			return nil, err
		}
		i := &image{source: source, key: fmt.Sprintf("%+v", source), attrs: sl.StringDict{}}
		if d, further := source.(attest.Disk); !further || d.Path != "" {
			if i.key, err = guestimage.Key(access.Spec(source)); err != nil {
				return nil, usagef("%s: %v", f.Name, err)
			}
		}
		for n, p := range f.Params {
			i.attrs[p.Name] = sl.None
			switch {
			case n < len(args):
				i.attrs[p.Name] = args[n]
			case p.Type == operation.Bool:
				i.attrs[p.Name] = sl.False
			case p.Type != operation.List && p.Type != operation.Files:
				i.attrs[p.Name] = sl.String("")
			}
		}
		for _, kv := range kwargs {
			i.attrs[string(kv[0].(sl.String))] = kv[1]
		}
		if th.lab == nil { // it may have to be built first
			l.images = append(l.images, declaredImage{source, f.Name, th.position(t)})
			return i, nil
		}
		if err := access.CheckImage(source); err != nil {
			return nil, usagef("%s: %v", f.Name, err)
		}
		return i, nil
	}
}

// A declaredImage is one that the top level of a file makes.
type declaredImage struct {
	source   attest.Image
	function string
	at       event.Position
}

// checkImages looks for the files of the host that images are made of, unless the file
// has commands that may make them.
func (l *loader) checkImages(f *File) []*script.Error {
	var errs []*script.Error
	for _, i := range l.images {
		if len(f.builds) > 0 {
			break
		}
		if err := access.CheckImage(i.source); err != nil {
			errs = append(errs, l.sources.errorAt(i.at, usagef("%s: %v", i.function, err)))
		}
	}
	return errs
}

// relative makes paths that the calling file gives relative to that file.
func (th *thread) relative(t *sl.Thread) func(string) string {
	dir := filepath.Dir(th.position(t).File)
	return func(path string) string {
		if path == "" || filepath.IsAbs(path) {
			return path
		}
		return filepath.Join(dir, path)
	}
}
