package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/dustin/go-humanize/english"
)

// Spec is where an image comes from: at most one of its fields is set. The
// zero value is Debian's base image.
type Spec struct {
	Debian *Debian `json:"debian,omitempty"`
	Rootfs *Rootfs `json:"rootfs,omitempty"`
	Disk   *Disk   `json:"disk,omitempty"`
	Title  string  `json:"title,omitempty"` // for people, instead of what String says; the image is the same
}

// Debian is a Debian system with packages. The zero value is attest's base
// image of DefaultSuite with Debian's cloud kernel.
type Debian struct {
	Suite    string          `json:"suite,omitempty"`    // code name or "stable"; empty: DefaultSuite
	Packages []string        `json:"packages,omitempty"` // as apt-get install takes them: "nginx", "curl=7.*", "vim-"
	Files    map[string]File `json:"files,omitempty"`    // absolute path in the guest → contents; written after the packages
	Run      []string        `json:"run,omitempty"`      // shell lines, run with sh -e as root in the image, in order, at the end
	Boot                     // a kernel package is one of Suite
	Root     string          `json:"root,omitempty"` // the file system of machines' roots; nothing in the image depends on it
	RootSize int64           `json:"root_size,omitempty"`

	sums map[string]string // of what is in files of the host, by resolveFiles
}

// Rootfs is an existing root file system. It is never modified.
type Rootfs struct {
	Path string `json:"path"` // a directory, a tar (plain, gzip, zstd or xz), or an erofs, squashfs or ext4 image
	Boot
	Root     string `json:"root,omitempty"` // as in Debian
	RootSize int64  `json:"root_size,omitempty"`
}

// Boot is the kernel that starts an image.
type Boot struct {
	// Kernel is empty for Debian's cloud kernel, "debian:PACKAGE" for a kernel
	// package of DefaultSuite (of Debian.Suite in a Debian), or the path of a bzImage or vmlinux.
	Kernel string `json:"kernel,omitempty"`
	// Modules is the directory of the modules of a kernel given by path, the
	// one that holds modules.dep. Empty: lib/modules/RELEASE of the image if it is
	// a directory, otherwise the guest finds them in its own root.
	Modules string `json:"modules,omitempty"`
	// Initrd is the path of an initrd that the kernel gets instead of attest's.
	Initrd  string `json:"initrd,omitempty"`
	Cmdline string `json:"cmdline,omitempty"` // of the kernel, besides what attest and the machine say; nothing in the image depends on it
}

// Disk is an existing whole disk. It is never modified.
type Disk struct {
	Path   string `json:"path"`
	Format string `json:"format,omitempty"` // "raw" or "qcow2"; empty: by the file's first bytes
	Boot
	// Firmware is "bios" or "uefi": it starts the loader that is on the disk, which has a
	// kernel of its own. Empty: a kernel of attest's, or the one that Boot says, starts
	// what is on the disk.
	Firmware string `json:"boot,omitempty"`
}

// File is a file to write into an image. In JSON a plain string is its content.
type File struct {
	Content string `json:"content,omitempty"` // any bytes in Go, UTF-8 in JSON
	Path    string `json:"path,omitempty"`    // a regular file of the host to take the content from, instead of Content
	Mode    uint32 `json:"-"`                 // permission bits, 0: those of Path, or 0644. In JSON "mode", an octal string
}

// A Source is what Build takes: a Debian, a Rootfs, a Disk, or a Spec.
type Source interface {
	fmt.Stringer
	spec() Spec
}

func (s Spec) spec() Spec { return s }

// untitled is what decides about the image.
func (s Spec) untitled() Spec {
	s.Title = ""
	if s.Debian != nil {
		d := s.Debian.keyed()
		s.Debian = &d
	}
	return s
}

func (d Debian) spec() Spec { return Spec{Debian: &d} }
func (r Rootfs) spec() Spec { return Spec{Rootfs: &r} }
func (d Disk) spec() Spec   { return Spec{Disk: &d} }

func (d Debian) String() string { return d.spec().String() }
func (r Rootfs) String() string { return r.spec().String() }
func (d Disk) String() string   { return d.spec().String() }

// SpecOf is a source as plain data, with absolute paths.
func SpecOf(source Source) Spec {
	s := source.spec()
	if abs, err := s.absolute(); err == nil {
		return abs
	}
	return s // it will be refused where it is built
}

// Key is the same for two sources that ask for the same image. It looks at the
// sources only, not at the files that they name. Errors are *SpecError and *PackageError.
func Key(source Source) (string, error) {
	s := source.spec()
	if err := s.Check(); err != nil {
		return "", err
	}
	s, err := s.absolute()
	if err != nil {
		return "", &SpecError{Err: err}
	}
	return digest("spec", s.untitled()), nil
}

// DefaultSuite is the Debian release that an image has when its spec names none.
const DefaultSuite = "bookworm"

func decodeStrict(data []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value")
	}
	return nil
}

// fileJSON is the object form of a File.
type fileJSON struct {
	Content string `json:"content,omitempty"`
	Path    string `json:"path,omitempty"`
	Mode    string `json:"mode,omitempty"`
}

// UnmarshalJSON accepts a string, or an object with content or path, and mode.
func (f *File) UnmarshalJSON(data []byte) error {
	*f = File{}
	if len(data) > 0 && data[0] == '"' {
		return json.Unmarshal(data, &f.Content)
	}
	var j fileJSON
	if err := decodeStrict(data, &j); err != nil {
		return fmt.Errorf("%w (a file is a string, or an object with content or path, and mode)", err)
	}
	f.Content, f.Path = j.Content, j.Path
	if j.Mode != "" {
		mode, err := strconv.ParseUint(j.Mode, 8, 32)
		if err != nil || mode == 0 || mode > 0o7777 {
			return fmt.Errorf("mode %q is not an octal number from 1 to 7777", j.Mode)
		}
		f.Mode = uint32(mode)
	}
	return nil
}

// MarshalJSON is the inverse of UnmarshalJSON.
func (f File) MarshalJSON() ([]byte, error) {
	if f.Path == "" && f.Mode == 0 {
		return json.Marshal(f.Content)
	}
	j := fileJSON{Content: f.Content, Path: f.Path}
	if f.Mode != 0 {
		j.Mode = fmt.Sprintf("%04o", f.Mode)
	}
	return json.Marshal(j)
}

// Check refuses a spec that cannot be built, without looking at the host's
// files. All errors are *SpecError.
func (s Spec) Check() error {
	if strings.ContainsFunc(s.Title, unicode.IsControl) || len(s.Title) > maxTitle {
		return specErrorf("title", "%.100q is not one line of at most %d bytes", s.Title, maxTitle)
	}
	given := 0
	for _, set := range []bool{s.Debian != nil, s.Rootfs != nil, s.Disk != nil} {
		if set {
			given++
		}
	}
	switch {
	case given > 1:
		return specErrorf("", "more than one of debian, rootfs and disk")
	case s.Rootfs != nil:
		return s.Rootfs.check()
	case s.Disk != nil:
		return s.Disk.check()
	}
	return s.debian().check()
}

// debian is the Debian that the spec means if it means one.
func (s Spec) debian() *Debian {
	if s.Debian == nil {
		return &Debian{}
	}
	return s.Debian
}

// A package as apt-get install takes it: name, architecture, version or
// release, removal mark. Not an option, a path, a pattern or shell syntax.
var packagePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]*(:[a-z0-9]+)?([=/][A-Za-z0-9.+:~*-]+)?[+-]?$`)

var suitePattern = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)

func (d *Debian) check() error {
	if d.Suite != "" && !suitePattern.MatchString(d.Suite) {
		return specErrorf("suite", "%q is not the name of a Debian release", d.Suite)
	}
	for _, p := range d.Packages {
		if !packagePattern.MatchString(p) {
			return &PackageError{Package: p, Reason: "not a package name"}
		}
	}
	for name, f := range d.Files {
		if err := f.check(name); err != nil {
			return err
		}
	}
	for i, line := range d.Run {
		if strings.TrimSpace(line) == "" {
			return specErrorf(fmt.Sprintf("run[%d]", i), "empty line")
		}
	}
	return d.Boot.check("")
}

// volatile are the directories that an image cannot fill.
var volatile = regexp.MustCompile(`^/(dev|proc|run|sys|tmp)/`)

func (f File) check(name string) error {
	field := fmt.Sprintf("files[%q]", name)
	switch {
	case !path.IsAbs(name) || path.Clean(name) != name || name == "/" || strings.ContainsRune(name, 0):
		return specErrorf(field, "not a clean absolute path of a file")
	case volatile.MatchString(name):
		return specErrorf(field, "the guest starts with an empty file system there")
	case f.Content != "" && f.Path != "":
		return specErrorf(field, "both content and path")
	case f.Mode > 0o7777:
		return specErrorf(field, "mode %#o is not permission bits", f.Mode)
	}
	return nil
}

const kernelPackagePrefix = "debian:"

func checkKernel(kernel string) error {
	if name, ok := strings.CutPrefix(kernel, kernelPackagePrefix); ok && !packagePattern.MatchString(name) {
		return specErrorf("kernel", "%q is not a package name", name)
	}
	return nil
}

func (r *Rootfs) check() error {
	if r.Path == "" {
		return specErrorf("rootfs.path", "missing")
	}
	return r.Boot.check("rootfs.")
}

func (b *Boot) check(prefix string) error {
	switch {
	case b.Modules != "" && (b.Kernel == "" || strings.HasPrefix(b.Kernel, kernelPackagePrefix)):
		return specErrorf(prefix+"modules", "only allowed with a kernel given by path; Debian's kernels come with their modules")
	case b.Initrd != "" && b.Kernel == "":
		return specErrorf(prefix+"initrd", "it goes with a kernel of your own; give that, too")
	case b.Initrd != "" && b.Modules != "":
		return specErrorf(prefix+"modules", "an initrd of your own has the modules that it needs, and the image has the others")
	}
	return checkKernel(b.Kernel)
}

// KernelBoot is the Firmware of a disk that its Kernel starts.
const KernelBoot = "kernel"

func (d *Disk) check() error {
	if d.Path == "" {
		return specErrorf("disk.path", "missing")
	}
	if d.Format != "" && d.Format != "raw" && d.Format != "qcow2" {
		return specErrorf("disk.format", "%q is neither raw nor qcow2", d.Format)
	}
	switch {
	case d.Firmware == KernelBoot && (d.Kernel == "" || strings.HasPrefix(d.Kernel, kernelPackagePrefix)):
		return specErrorf("disk.boot", "it goes with the path of a kernel that mounts the disk by itself; give that, too")
	case d.Firmware == KernelBoot && d.Modules != "":
		return specErrorf("disk.modules", "with boot=%q the disk has the modules of its kernel", KernelBoot)
	case d.Firmware == "" || d.Firmware == KernelBoot:
		return d.Boot.check("disk.")
	case d.Firmware != "bios" && d.Firmware != "uefi":
		return specErrorf("disk.boot", "%q is none of bios, uefi and %s", d.Firmware, KernelBoot)
	case d.Boot != Boot{}:
		return specErrorf("disk.boot", "the loader on the disk has a kernel of its own; leave out kernel, modules, initrd and cmdline, or boot")
	}
	return nil
}

const (
	maxTitle = 100
	// namedPackages is how many packages of an image have room in its title.
	namedPackages = 3
)

// String is a short title for people: "debian:bookworm+nginx", or the one that was given.
func (s Spec) String() string {
	switch {
	case s.Title != "":
		return s.Title
	case s.Rootfs != nil:
		return "rootfs:" + filepath.Base(s.Rootfs.Path)
	case s.Disk != nil:
		return "disk:" + filepath.Base(s.Disk.Path)
	}
	d := s.debian().normalised()
	parts := []string{"debian:" + d.Suite}
	if n := len(d.Packages) - namedPackages; n > 1 {
		parts = append(append(parts, d.Packages[:namedPackages]...), fmt.Sprintf("%d packages", n))
	} else {
		parts = append(parts, d.Packages...)
	}
	if n := len(d.Files); n > 0 {
		parts = append(parts, english.Plural(n, "file", ""))
	}
	if n := len(d.Run); n > 0 {
		parts = append(parts, english.Plural(n, "run line", ""))
	}
	return strings.Join(parts, "+")
}

// normalised returns d as it is built: defaults filled in, packages in one order.
// The order of packages means nothing to apt; that of run lines does.
func (d Debian) normalised() Debian {
	if d.Suite == "" {
		d.Suite = DefaultSuite
	}
	if d.Kernel == "" {
		d.Kernel = kernelPackagePrefix + defaultKernelPackage
	}
	d.Packages = slices.Clone(d.Packages)
	slices.Sort(d.Packages)
	d.Packages = slices.Compact(d.Packages)
	return d
}

// resolveFiles looks at the host's files: the digests of what they have, and their modes.
func (d Debian) resolveFiles() (Debian, error) {
	files, sums := make(map[string]File, len(d.Files)), map[string]string{}
	for name, f := range d.Files {
		if f.Path != "" {
			st, err := os.Stat(f.Path)
			if err == nil && !st.Mode().IsRegular() {
				err = errors.New("not a regular file")
			}
			if err != nil {
				return d, &SpecError{Field: fmt.Sprintf("files[%q]", name), Err: err}
			}
			if sums[name], _, err = fileDigest(f.Path); err != nil {
				return d, &SpecError{Field: fmt.Sprintf("files[%q]", name), Err: err}
			}
			if f.Mode == 0 {
				f.Mode = uint32(st.Mode().Perm())
			}
		}
		if f.Mode == 0 {
			f.Mode = 0o644
		}
		files[name] = f
	}
	d.Files, d.sums = files, sums
	return d, nil
}

// keyed is d for a key: files have the digests of what is in them instead of the host's paths, once these are
// known, and of content that is not text, since JSON has no other.
func (d Debian) keyed() Debian {
	const prefix = "sha256:"
	files := maps.Clone(d.Files)
	for name, f := range files {
		if sum, ok := d.sums[name]; ok {
			files[name] = File{Path: prefix + sum, Mode: f.Mode}
		} else if !utf8.ValidString(f.Content) {
			files[name] = File{Path: fmt.Sprintf("%s%x", prefix, sha256.Sum256([]byte(f.Content))), Mode: f.Mode}
		}
	}
	d.Files = files
	return d
}

// formatVersion is part of every key. It changes when the same spec gives
// another image: another base configuration, another layout on disk.
const formatVersion = 2

// digest is the key of a value of plain data: two values have the same key
// exactly if their JSON is the same, whatever the order of map entries.
func digest(kind string, v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("image: digest of %T: %v", v, err)) // plain data only
	}
	h := sha256.New()
	fmt.Fprintf(h, "attest %s %d\n", kind, formatVersion)
	h.Write(data)
	return hexDigest(h)
}

// absolute makes the paths of a spec independent of the working directory, so
// that its record in the cache can be read later from elsewhere.
func (s Spec) absolute() (Spec, error) {
	var err error
	abs := func(p string) string {
		if p == "" || strings.HasPrefix(p, kernelPackagePrefix) {
			return p
		}
		a, e := filepath.Abs(p)
		err = errors.Join(err, e)
		return a
	}
	switch {
	case s.Rootfs != nil:
		r := *s.Rootfs
		r.Path, r.Boot = abs(r.Path), r.Boot.absolute(abs)
		s.Rootfs = &r
	case s.Disk != nil:
		d := *s.Disk
		d.Path, d.Boot = abs(d.Path), d.Boot.absolute(abs)
		s.Disk = &d
	default:
		d := s.debian().normalised()
		d.Boot = d.Boot.absolute(abs)
		s.Debian = &d
	}
	return s, err
}

func (b Boot) absolute(abs func(string) string) Boot {
	b.Kernel, b.Modules, b.Initrd = abs(b.Kernel), abs(b.Modules), abs(b.Initrd)
	return b
}

// Kernel is what the source says of the kernel, whichever source it is.
func (s Spec) Kernel() Boot {
	switch {
	case s.Rootfs != nil:
		return s.Rootfs.Boot
	case s.Disk != nil:
		return s.Disk.Boot
	}
	return s.debian().Boot
}
