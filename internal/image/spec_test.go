package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// parseSpec reads the JSON form of a spec.
func parseSpec(data []byte) (Spec, error) {
	var s Spec
	if err := decodeStrict(data, &s); err != nil {
		return Spec{}, &SpecError{Err: err}
	}
	return s, s.Check()
}

func TestParseSpec(t *testing.T) {
	for _, test := range []struct{ json, want string }{
		{`{}`, "debian:bookworm"},
		{`{"debian":{"suite":"trixie","packages":["nginx","curl","nginx"],"run":["true"],"files":{"/etc/x":"y"}}}`, "debian:trixie+curl+nginx+1 file+1 run line"},
		{`{"debian":{"files":{"/etc/x":{"content":"y","mode":"0600"}, "/etc/y":{"path":"/z"}}}}`, "debian:bookworm+2 files"},
		{`{"rootfs":{"path":"/srv/root","kernel":"debian:linux-image-amd64"}}`, "rootfs:root"},
		{`{"debian":{"packages":["a1","b1","c1","d1","e1"]}}`, "debian:bookworm+a1+b1+c1+2 packages"},
		{`{"debian":{"packages":["a1","b1","c1","d1"]}}`, "debian:bookworm+a1+b1+c1+d1"},
		{`{"title":"web","debian":{"packages":["nginx"]}}`, "web"},
		{`{"disk":{"path":"a.qcow2"}}`, "disk:a.qcow2"},
		{`{"debian":{"packages":["curl=7.88*","vim/bookworm","libc6:amd64","exim4-"]}}`, "debian:bookworm+curl=7.88*+exim4-+libc6:amd64+vim/bookworm"},

		{`{"debian":{"package":["nginx"]}}`, `unknown field "package"`},
		{`{"debian":{"files":{"/etc/x":{"contents":"y"}}}}`, `unknown field "contents"`},
		{`{"debian":{},"disk":{"path":"x"}}`, "more than one"},
		{`{} {}`, "more than one JSON value"},
		{`{"debian":{"packages":["nginx; rm -rf /"]}}`, "not a package name"},
		{`{"debian":{"packages":["--allow-unauthenticated"]}}`, "not a package name"},
		{`{"debian":{"suite":"../x"}}`, "suite"},
		{`{"debian":{"files":{"etc/x":"y"}}}`, "absolute path"},
		{`{"debian":{"files":{"/etc/../x":"y"}}}`, "absolute path"},
		{`{"debian":{"files":{"/tmp/x":"y"}}}`, "empty file system"},
		{`{"debian":{"files":{"/x":{"content":"y","path":"z"}}}}`, "both content and path"},
		{`{"debian":{"files":{"/x":{"content":"y","mode":"888"}}}}`, "octal"},
		{`{"debian":{"run":["true"," "]}}`, "run[1]: empty line"},
		{`{"debian":{"kernel":"debian:-x"}}`, "not a package name"},
		{`{"rootfs":{}}`, "rootfs.path: missing"},
		{`{"rootfs":{"path":"x","modules":"y"}}`, "rootfs.modules"},
		{`{"disk":{"path":"x","format":"vmdk"}}`, "neither raw nor qcow2"},
		{`{"disk":{"path":"x","boot":"uefi"}}`, "disk:x"},
		{`{"disk":{"path":"x","kernel":"k","initrd":"i","cmdline":"root=/dev/vda1"}}`, "disk:x"},
		{`{"disk":{"path":"x","boot":"grub"}}`, `disk.boot: "grub" is none of bios, uefi and kernel`},
		{`{"disk":{"path":"x","boot":"bios","kernel":"k"}}`, "disk.boot: the loader on the disk has a kernel of its own"},
		{`{"disk":{"path":"x","initrd":"i"}}`, "disk.initrd: it goes with a kernel of your own"},
		{`{"rootfs":{"path":"x","kernel":"k","initrd":"i","modules":"m"}}`, "rootfs.modules: an initrd of your own"},
		{`{"debian":{"kernel":"debian:linux-image-amd64","modules":"m"}}`, "modules: only allowed with a kernel given by path"},
	} {
		spec, err := parseSpec([]byte(test.json))
		got := spec.String()
		if err != nil {
			got = err.Error()
			var specErr *SpecError
			var pkgErr *PackageError
			if !errors.As(err, &specErr) && !errors.As(err, &pkgErr) {
				t.Errorf("%s: %T is not the user's fault", test.json, err)
			}
		}
		if err == nil && got != test.want || err != nil && !strings.Contains(got, test.want) {
			t.Errorf("%s: got %s, want %s", test.json, got, test.want)
		}
	}
}

// Key tells apart what gives another image, and nothing else.
func TestKey(t *testing.T) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	base := Debian{}
	for _, test := range []struct {
		what string
		a, b Source
		same bool
	}{
		{"defaults", base, Debian{Suite: "bookworm", Boot: Boot{Kernel: "debian:linux-image-cloud-amd64"}}, true},
		{"a Spec", base, Spec{}, true},
		{"order of packages", Debian{Packages: []string{"a1", "b1"}}, Debian{Packages: []string{"b1", "a1", "b1"}}, true},
		{"packages", base, Debian{Packages: []string{"a1"}}, false},
		{"order of lines", Debian{Run: []string{"a", "b"}}, Debian{Run: []string{"b", "a"}}, false},
		{"where a line ends", Debian{Run: []string{"a", "b"}}, Debian{Run: []string{"ab"}}, false},
		{"mode of a file", Debian{Files: map[string]File{"/x": {}}}, Debian{Files: map[string]File{"/x": {Mode: 0o600}}}, false},
		{"suite", base, Debian{Suite: "trixie"}, false},
		{"initrd", Debian{Boot: Boot{Kernel: "/k"}}, Debian{Boot: Boot{Kernel: "/k", Initrd: "/i"}}, false},
		{"what starts a disk", Disk{Path: "/d", Boot: Boot{Kernel: "/k"}}, Disk{Path: "/d", Boot: Boot{Kernel: "/k"}, Firmware: KernelBoot}, false},
		{"firmware", Disk{Path: "/d"}, Disk{Path: "/d", Firmware: "bios"}, false},
		{"relative path", Disk{Path: "x"}, Disk{Path: filepath.Join(wd, "x")}, true},
		{"kind", Disk{Path: "x"}, Rootfs{Path: "x"}, false},
		{"a title", base, Spec{Title: "for people"}, true},
	} {
		a, err := Key(test.a)
		if err != nil {
			t.Fatal(err)
		}
		b, err := Key(test.b)
		if err != nil {
			t.Fatal(err)
		}
		if (a == b) != test.same {
			t.Errorf("%s: same key: %v", test.what, a == b)
		}
	}
}

// The content of a host's file is part of what is built, every byte of it, and its path is not.
func TestResolveFiles(t *testing.T) {
	file := func(content string) string {
		name := filepath.Join(t.TempDir(), "script")
		if err := os.WriteFile(name, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
		return name
	}
	key := func(d Debian) string { return digest("test", d.keyed()) }
	resolve := func(f File) Debian {
		d, err := Debian{Files: map[string]File{"/bin/x": f, "/etc/y": {Content: "y"}}}.resolveFiles()
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	name := file("#!/bin/sh\n\xff")
	d := resolve(File{Path: name})
	if key(d) != key(resolve(File{Path: file("#!/bin/sh\n\xff")})) {
		t.Error("another path is another image")
	}
	for _, other := range []File{{Path: file("#!/bin/sh\n\xfe")}, {Path: name, Mode: 0o700}, {Content: "#!/bin/sh\n", Mode: 0o755}} {
		if key(d) == key(resolve(other)) {
			t.Errorf("the same image as with %+v", other)
		}
	}
	if key(resolve(File{Content: "\xff"})) == key(resolve(File{Content: "\xfe"})) {
		t.Error("what is no text is the same as other such content")
	}
	var archive bytes.Buffer
	if err := d.writeFiles(&archive); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for r := tar.NewReader(&archive); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		content, readErr := io.ReadAll(r)
		if err != nil || readErr != nil {
			t.Fatal(err, readErr)
		}
		got[h.Name] = fmt.Sprintf("%o %s", h.Mode, content)
	}
	if want := map[string]string{"./bin/x": "755 #!/bin/sh\n\xff", "./etc/y": "644 y"}; !maps.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, changed := range []string{"#!/bin/sh\n\xfe", "#!/bin/sh\n\xff and more", ""} {
		if err := os.WriteFile(name, []byte(changed), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := d.writeFiles(io.Discard); !errors.As(err, new(*SpecError)) || !strings.Contains(err.Error(), name+" was changed while the image was built") {
			t.Errorf("%q: %v", changed, err)
		}
	}
	for _, bad := range []string{name + "-missing", filepath.Dir(name)} {
		_, err := Debian{Files: map[string]File{"/x": {Path: bad}}}.resolveFiles()
		var specErr *SpecError
		if !errors.As(err, &specErr) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
