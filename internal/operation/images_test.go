package operation

import (
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/attest-vm/attest"
)

// Every field of an image has an argument, and every argument sets the field of its
// name.
func TestImageFunctionsAreComplete(t *testing.T) {
	for _, f := range ImageFunctions {
		typ := reflect.TypeOf(f.zero)
		set := map[string]bool{}
		for i, p := range f.Params {
			if want := strings.ReplaceAll(p.Name, "_", ""); !strings.EqualFold(want, f.fields[i]) {
				t.Errorf("%s(%s=) sets %s", f.Name, p.Name, f.fields[i])
			}
			set[f.fields[i]] = true
		}
		for _, field := range reflect.VisibleFields(typ) {
			if !set[field.Name] {
				t.Errorf("%s() has no argument for %v.%s", f.Name, typ, field.Name)
			}
		}
	}
}

// What an image has in JSON is what its function takes.
func TestImagesOfJSON(t *testing.T) {
	for text, want := range map[string]attest.Image{
		`{}`: attest.Debian{},
		`{"debian": {"suite": "trixie", "packages": ["nginx"], "run": ["true"], "files": {"/etc/a": "a", "/etc/b": {"path": "b", "mode": "0755"}}, "kernel": "debian:linux-image-amd64", "cmdline": "quiet", "root": "xfs", "root_size": "2G"}, "title": "mine"}`: attest.Debian{
			Title: "mine", Suite: "trixie", Packages: []string{"nginx"}, Run: []string{"true"}, Files: map[string]attest.File{"/etc/a": {Content: "a"}, "/etc/b": {Path: "b", Mode: 0o755}},
			Kernel: "debian:linux-image-amd64", Cmdline: "quiet", Root: "xfs", RootSize: 2 << 30,
		},
		`{"rootfs": {"path": "r.tar", "kernel": "vmlinux", "modules": "mods"}}`:                           attest.Rootfs{Path: "r.tar", Kernel: "vmlinux", Modules: "mods"},
		`{"rootfs": {"path": "r.tar", "kernel": "vmlinux", "initrd": "initrd.img"}}`:                      attest.Rootfs{Path: "r.tar", Kernel: "vmlinux", Initrd: "initrd.img"},
		`{"disk": {"path": "d.img", "format": "raw", "boot": "uefi", "user": "root", "password": "pw"}}`:  attest.Disk{Path: "d.img", Format: "raw", Boot: "uefi", User: "root", Password: "pw"},
		`{"disk": {"size": "64M", "serial": "left", "bus": "scsi", "shared": "one", "title": null}}`:      attest.Disk{Size: 64 << 20, Serial: "left", Bus: "scsi", Shared: "one"},
		`{"disk": {"path": "seed.iso", "read_only": true, "kernel": null, "modules": null}, "title": ""}`: attest.Disk{Path: "seed.iso", ReadOnly: true},
	} {
		got, err := ImageOfJSON([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", text, diff)
		}
	}
	for text, want := range map[string]string{
		`[]`:                                                 "must be an image: debian(…), rootfs(…) or disk(…), not a list",
		`{"debain": {}}`:                                     `there is no kind of image "debain"; did you mean debian?`,
		`{"debian": {}, "disk": {}}`:                         "both debian and disk; an image is one of debian, rootfs, disk",
		`{"debian": []}`:                                     "debian must be an object with its arguments, not a list",
		`{"debian": {"pakages": []}}`:                        `debian(…): there is no argument "pakages"; did you mean packages?`,
		`{"debian": {"packages": "nginx"}}`:                  `debian(…): packages must be a list of strings, not the string "nginx"`,
		`{"debian": {"packages": ["--yes"]}}`:                `debian: image: package "--yes": not a package name`,
		`{"debian": {"root": "fat"}}`:                        `debian(…): root: "fat" is not a file system that a root can have; it is one of overlay, ext4, xfs, btrfs`,
		`{"debian": {"root_size": 4}}`:                       `debian(…): root_size must be a size such as "512M" or "2G", not the number 4`,
		`{"rootfs": {}}`:                                     "rootfs(…): argument path is missing",
		`{"disk": {}}`:                                       "disk: want a path, or the size of an empty disk",
		`{"disk": {"path": "x", "boot": "coreboot"}}`:        `disk: image: disk.boot: "coreboot" is none of bios, uefi and kernel`,
		`{"disk": {"path": "x", "read_only": "yes"}}`:        `disk(…): read_only must be True or False, not the string "yes"`,
		`{"rootfs": {"path": "x", "kernel": 1, "title": 2}}`: `rootfs(…): kernel must be the path of a kernel, or "debian:PACKAGE", not the number 1`,
		`{"debian"`:                                          "unexpected EOF",
	} {
		if _, err := ImageOfJSON([]byte(text)); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}
