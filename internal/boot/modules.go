package boot

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/erofs/go-erofs"
	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"
)

// bootModules is what /init loads in every guest, in this order: the bus, the
// disks, then what the root is made of, then what the agent needs. A module
// that the kernel has built in or lacks is left out; a guest that needs it
// fails with the name of what is missing.
var bootModules = []string{
	"virtio_pci", "virtio_mmio", "virtio_blk",
	"crc32c_intel", "crc32c_generic", // ext4 asks for crc32c by its algorithm's name, not as a dependency
	"ext4", "erofs", "overlay",
	"virtio_console", "virtio_net", "virtio_rng",
	"button", // ACPI's power button
}

// vsockModules are loaded in a guest whose host comes by vsock, in the set vsockSet:
// elsewhere they would only cost boot time.
var vsockModules = []string{
	"vmw_vsock_virtio_transport",
	"pvpanic_pci", // by which cloud-hypervisor learns of a panic, whatever the console says
}

const vsockSet = "vsock"

// filesystemModules is what a file system asks the kernel for by name (modprobe
// aliases, softdeps), and /init, which has no modprobe, loads before it.
var filesystemModules = map[string][]string{
	"btrfs": {"crc32c_generic", "xxhash_generic", "blake2b_generic", "sha256_generic"},
	"xfs":   {"crc32c_generic"},
}

// module is one kernel module, as it goes into the initramfs.
type module struct {
	name string // with underscores
	data []byte // ELF, uncompressed
}

// moduleTree is lib/modules/<release> of one kernel.
type moduleTree struct {
	source  string // for errors
	fsys    fs.FS
	close   func() error
	paths   map[string]string // module name to file
	builtin map[string]bool
	loaded  map[string][]byte
}

// openModules lists the modules in source: a directory, or a file that is an
// uncompressed erofs image.
func openModules(source string) (*moduleTree, error) {
	t := &moduleTree{source: source, close: func() error { return nil },
		paths: map[string]string{}, builtin: map[string]bool{}, loaded: map[string][]byte{}}
	if err := t.open(); err != nil {
		return nil, fmt.Errorf("kernel modules in %s: %w", source, err)
	}
	if err := t.list(); err != nil {
		t.close()
		return nil, fmt.Errorf("kernel modules in %s: %w", source, err)
	}
	return t, nil
}

func (t *moduleTree) open() error {
	st, err := os.Stat(t.source)
	if err != nil {
		return err
	}
	if st.IsDir() {
		t.fsys = os.DirFS(t.source)
		return nil
	}
	f, err := os.Open(t.source)
	if err != nil {
		return err
	}
	if t.fsys, err = erofs.Open(f); err != nil {
		f.Close()
		return err
	}
	t.close = f.Close
	return nil
}

func (t *moduleTree) list() error {
	err := fs.WalkDir(t.fsys, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name, ok := moduleName(d.Name()); ok && d.Type().IsRegular() {
			t.paths[name] = path
		}
		return nil
	})
	if err != nil {
		return err
	}
	list, err := fs.ReadFile(t.fsys, "modules.builtin")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for line := range strings.Lines(string(list)) {
		if name, ok := moduleName(path.Base(strings.TrimSpace(line))); ok {
			t.builtin[name] = true
		}
	}
	return nil
}

// moduleName is the name of the module in a file, if it is one. The kernel does
// not tell dashes from underscores.
func moduleName(file string) (name string, ok bool) {
	for _, suffix := range []string{".ko", ".ko.gz", ".ko.xz", ".ko.zst"} {
		if base, found := strings.CutSuffix(file, suffix); found {
			return strings.ReplaceAll(base, "-", "_"), true
		}
	}
	return "", false
}

// closure returns the named modules and their dependencies, each after its
// dependencies. Names that the kernel has built in or does not have are left out.
func (t *moduleTree) closure(names []string) ([]module, error) {
	var out []module
	const visiting, done = 1, 2
	state := map[string]int{}
	var visit func(name, wantedBy string) error
	visit = func(name, wantedBy string) error {
		name = strings.ReplaceAll(name, "-", "_")
		if state[name] == visiting {
			return fmt.Errorf("kernel modules in %s: %s and %s depend on each other", t.source, name, wantedBy)
		}
		file, have := t.paths[name]
		if state[name] == done || !have {
			if !have && wantedBy != "" && !t.builtin[name] {
				return fmt.Errorf("kernel modules in %s: %s depends on %s, which does not exist", t.source, wantedBy, name)
			}
			return nil
		}
		state[name] = visiting
		data, err := t.read(file)
		if err != nil {
			return err
		}
		deps, err := moduleDepends(data)
		if err != nil {
			return fmt.Errorf("kernel module %s: %w", file, err)
		}
		for _, dep := range deps {
			if err := visit(dep, name); err != nil {
				return err
			}
		}
		state[name] = done
		out = append(out, module{name, data})
		return nil
	}
	for _, name := range names {
		if err := visit(name, ""); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// maxModule is far above any module (amdgpu, with debug information: 400 MB).
const maxModule = 1 << 30

// read returns a module's ELF file, uncompressed.
func (t *moduleTree) read(file string) ([]byte, error) {
	if data, ok := t.loaded[file]; ok {
		return data, nil
	}
	f, err := t.fsys.Open(file)
	if err != nil {
		return nil, fmt.Errorf("kernel module: %w", err)
	}
	defer f.Close()
	var r io.Reader = f
	switch path.Ext(file) {
	case ".gz":
		r, err = gzip.NewReader(f)
	case ".xz":
		r, err = xz.NewReader(f, xz.DefaultDictMax)
	case ".zst":
		var d *zstd.Decoder
		if d, err = zstd.NewReader(f, zstd.WithDecoderConcurrency(1)); err == nil {
			defer d.Close()
			r = d
		}
	}
	if err != nil {
		return nil, fmt.Errorf("kernel module %s: %w", file, err)
	}
	data, err := io.ReadAll(io.LimitReader(r, maxModule))
	if err != nil {
		return nil, fmt.Errorf("kernel module %s: %w", file, err)
	}
	t.loaded[file] = data
	return data, nil
}

// moduleDepends reads a module's own list of dependencies ("depends=a,b" in
// its .modinfo section), which is there also where depmod never ran.
func moduleDepends(data []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("not a module: %w", err)
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("not a module: no .modinfo section")
	}
	info, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("read .modinfo: %w", err)
	}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if deps, ok := bytes.CutPrefix(field, []byte("depends=")); ok && len(deps) > 0 {
			return strings.Split(string(deps), ","), nil
		}
	}
	return nil, nil
}
