package starlark

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	sl "go.starlark.net/starlark"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/access"
	guestimage "github.com/attest-vm/attest/internal/image"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/vmm"
)

// An image is what debian(…), rootfs(…) and disk(…) return.
type image struct {
	function string
	source   attest.Image
	key      string
	attrs    sl.StringDict // what was given
}

var (
	_ sl.HasAttrs = (*image)(nil)
)

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

// newImage checks a source and keeps a copy of the arguments as attributes.
func newImage(b *sl.Builtin, source attest.Image, attrs sl.StringDict) (sl.Value, error) {
	key, err := guestimage.Key(access.Spec(source))
	if err != nil {
		return nil, usagef("%s: %v", b.Name(), err)
	}
	for name, v := range attrs {
		if v == nil {
			attrs[name] = sl.None
		}
	}
	return &image{b.Name(), source, key, attrs}, nil
}

func debian(t *sl.Thread, b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
	var suite, kernel, modules, initrd, cmdline, root, rootSize, title string
	var packages, run, files sl.Value
	err := unpack(b, args, kwargs, "suite?", &suite, "packages?", &packages, "files?", &files, "run?", &run, "kernel?", &kernel,
		"modules?", &modules, "initrd?", &initrd, "cmdline?", &cmdline, "root?", &root, "root_size?", &rootSize, "title?", &title)
	if err != nil {
		return nil, err
	}
	path := threadOf(t).relative(t)
	d := attest.Debian{Title: title, Suite: suite, Kernel: kernelPath(kernel, path), Modules: path(modules), Initrd: path(initrd), Cmdline: cmdline, Root: root}
	if d.RootSize, err = size(b, "root_size", rootSize); err != nil {
		return nil, err
	}
	if d.Packages, err = stringList(b, "packages", packages); err != nil {
		return nil, err
	}
	if d.Run, err = stringList(b, "run", run); err != nil {
		return nil, err
	}
	if d.Files, err = imageFiles(b, files, path); err != nil {
		return nil, err
	}
	return newImage(b, d, sl.StringDict{
		"suite": sl.String(suite), "packages": packages, "files": files, "run": run,
		"kernel": sl.String(kernel), "modules": sl.String(modules), "initrd": sl.String(initrd), "cmdline": sl.String(cmdline),
		"root": sl.String(root), "root_size": sl.String(rootSize), "title": sl.String(title),
	})
}

func rootfs(t *sl.Thread, b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
	var path, kernel, modules, initrd, cmdline, root, rootSize, title string
	err := unpack(b, args, kwargs, "path", &path, "kernel?", &kernel, "modules?", &modules, "root?", &root, "root_size?", &rootSize, "title?", &title,
		"initrd?", &initrd, "cmdline?", &cmdline)
	if err != nil {
		return nil, err
	}
	rel := threadOf(t).relative(t)
	r := attest.Rootfs{Title: title, Path: rel(path), Kernel: kernelPath(kernel, rel), Modules: rel(modules), Initrd: rel(initrd), Cmdline: cmdline, Root: root}
	if r.RootSize, err = size(b, "root_size", rootSize); err != nil {
		return nil, err
	}
	if err := exists(b, r.Path); err != nil {
		return nil, err
	}
	return newImage(b, r, sl.StringDict{"path": sl.String(path), "kernel": sl.String(kernel), "modules": sl.String(modules),
		"initrd": sl.String(initrd), "cmdline": sl.String(cmdline), "root": sl.String(root), "root_size": sl.String(rootSize), "title": sl.String(title)})
}

// size reads the size of a disk, where one is given.
func size(b *sl.Builtin, name, text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	n, err := vmm.ParseSize(text)
	if err != nil {
		return 0, usagef("%s: %s: %v", b.Name(), name, err)
	}
	return n, nil
}

func disk(t *sl.Thread, b *sl.Builtin, args sl.Tuple, kwargs []sl.Tuple) (sl.Value, error) {
	var path, format, bytes, serial, bus, shared, boot, kernel, modules, initrd, cmdline, user, password, title string
	var readOnly bool
	err := unpack(b, args, kwargs, "path?", &path, "format?", &format, "size?", &bytes, "serial?", &serial, "bus?", &bus, "read_only?", &readOnly, "shared?", &shared, "title?", &title,
		"boot?", &boot, "kernel?", &kernel, "modules?", &modules, "initrd?", &initrd, "cmdline?", &cmdline, "user?", &user, "password?", &password)
	if err != nil {
		return nil, err
	}
	rel := threadOf(t).relative(t)
	d := attest.Disk{Title: title, Path: rel(path), Format: format, Serial: serial, Bus: bus, ReadOnly: readOnly, Shared: shared,
		Boot: boot, Kernel: kernelPath(kernel, rel), Modules: rel(modules), Initrd: rel(initrd), Cmdline: cmdline, User: user, Password: password}
	if d.Size, err = size(b, "size", bytes); err != nil {
		return nil, err
	}
	if err := exists(b, d.Path); err != nil {
		return nil, err
	}
	attrs := sl.StringDict{
		"path": sl.String(path), "format": sl.String(format), "size": sl.String(bytes), "serial": sl.String(serial), "bus": sl.String(bus),
		"read_only": sl.Bool(readOnly), "shared": sl.String(shared), "title": sl.String(title),
		"boot": sl.String(boot), "kernel": sl.String(kernel), "modules": sl.String(modules), "initrd": sl.String(initrd), "cmdline": sl.String(cmdline),
		"user": sl.String(user), "password": sl.String(password),
	}
	if path == "" && bytes == "" {
		return nil, usagef("%s: want a path, or the size of an empty disk", b.Name())
	}
	if path == "" {
		return &image{b.Name(), d, fmt.Sprintf("%+v", d), attrs}, nil
	}
	return newImage(b, d, attrs)
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

// A kernel is a path or the name of a package.
func kernelPath(kernel string, rel func(string) string) string {
	if strings.HasPrefix(kernel, "debian:") {
		return kernel
	}
	return rel(kernel)
}

func exists(b *sl.Builtin, path string) error {
	if _, err := os.Stat(path); path != "" && err != nil {
		return usagef("%s: %v", b.Name(), err)
	}
	return nil
}

func stringList(b *sl.Builtin, name string, v sl.Value) ([]string, error) {
	if v == nil || v == sl.None {
		return nil, nil
	}
	list, ok := v.(sl.Iterable)
	if !ok {
		return nil, usagef("%s: %s must be a list of strings, not %s", b.Name(), name, operation.Describe(plain(v)))
	}
	var out []string
	for x := range sl.Elements(list) {
		s, ok := sl.AsString(x)
		if !ok {
			return nil, usagef("%s: %s must be a list of strings; it has %s", b.Name(), name, operation.Describe(plain(x)))
		}
		out = append(out, s)
	}
	return out, nil
}

// imageFiles reads the files of an image.
func imageFiles(b *sl.Builtin, v sl.Value, rel func(string) string) (map[string]attest.File, error) {
	if v == nil || v == sl.None {
		return nil, nil
	}
	out, err := operation.FilesOf(plain(v))
	if err != nil {
		return nil, usagef("%s: files%v", b.Name(), err)
	}
	for path, f := range out {
		if f.Path == "" {
			continue
		}
		f.Path = rel(f.Path)
		if _, err := os.Stat(f.Path); err != nil {
			return nil, usagef("%s: files[%q]: %v", b.Name(), path, err)
		}
		out[path] = f
	}
	return out, nil
}
