package boot

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestGuestCmdline(t *testing.T) {
	got, err := Guest{Root: RootLayers, Layers: 2, Modules: true, Init: "/sbin/my init", Args: []string{"quiet", `x="a b" y=z`}}.Cmdline()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"panic=-1 ", " net.ifnames=0 ", " loglevel=5 ",
		" attest.root=layers:2 attest.modules=1 \"attest.init=/sbin/my init\" quiet x=\"a b\" y=z",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %s", want, got)
		}
	}
}

func TestGuestSerials(t *testing.T) {
	for _, c := range []struct {
		guest Guest
		want  []string
	}{
		{Guest{Root: RootLayers, Layers: 2, Modules: true}, []string{"attest-l0", "attest-l1", "attest-mod", "attest-rw"}},
		{Guest{Root: RootLayers, Layers: 1, Volatile: true}, []string{"attest-l0"}},
		{Guest{Root: RootImage}, []string{"attest-root", "attest-rw"}},
		{Guest{Root: RootDisk, Modules: true}, []string{"attest-disk", "attest-mod"}},
		{Guest{Root: RootPlain, Modules: true}, []string{"attest-disk", "attest-mod"}},
		{Guest{Root: RootLayers, Layers: 1, Modules: true, Fill: "W"}, []string{"attest-l0", "attest-disk"}},
	} {
		if diff := cmp.Diff(c.want, c.guest.Serials()); diff != "" {
			t.Errorf("%+v: %s", c.guest, diff)
		}
	}
}

func TestGuestCheck(t *testing.T) {
	for _, c := range []struct {
		guest Guest
		want  string // part of the error
	}{
		{Guest{}, `unknown kind of root ""`},
		{Guest{Root: RootLayers}, "0 layers"},
		{Guest{Root: RootLayers, Layers: 33}, "33 layers"},
		{Guest{Root: RootDisk, Volatile: true}, "cannot be volatile"},
		{Guest{Root: RootPlain, Volatile: true}, "cannot be volatile"},
		{Guest{Root: RootPlain, Fill: "W"}, "a root of kind plain is not copied"},
		{Guest{Root: RootImage, Fill: "a b"}, "not a word"},
		{Guest{Root: RootImage, Init: "init"}, "not an absolute path"},
		{Guest{Root: RootImage, Init: `/"`}, "has a quote"},
		{Guest{Root: RootImage, Args: []string{`a="b`}}, "a quote that is not closed"},
		{Guest{Root: RootImage, Args: []string{"a\nb"}}, "a newline"},
	} {
		_, err := c.guest.Cmdline()
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: error %v, want %q", c.guest, err, c.want)
		}
	}
}

// What the host writes the guest reads, whatever else is on the command line.
func TestCmdlineRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := Guest{
			Root:     rapid.SampledFrom([]Root{RootLayers, RootImage, RootDisk, RootPlain}).Draw(t, "root"),
			Modules:  rapid.Bool().Draw(t, "modules"),
			Init:     rapid.SampledFrom([]string{"", "none", "/sbin/init", "/a b"}).Draw(t, "init"),
			Volatile: rapid.Bool().Draw(t, "volatile"),
		}
		if want.Root == RootLayers {
			want.Layers = rapid.IntRange(1, maxLayers).Draw(t, "layers")
		}
		if want.direct() {
			want.Volatile = false
		} else {
			want.Fill = rapid.StringMatching(`[A-Z2-7]*`).Draw(t, "fill")
		}
		sent := want
		sent.Args = rapid.SliceOf(rapid.StringMatching(`[a-z]+=[a-z .=]*`)).Draw(t, "args")
		line, err := sent.Cmdline()
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseCmdline("console=ttyS0 " + line + "\n")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%s: %s", line, diff)
		}
	})
}

// What backends add for a VMM without serial ports and serials of disks.
func TestParseCmdlineOfBackends(t *testing.T) {
	got, err := parseCmdline("attest.root=layers:1 attest.vsock=1 attest.disks=attest-l0,attest-rw")
	want := Guest{Root: RootLayers, Layers: 1, Vsock: true, Disks: []string{"attest-l0", "attest-rw"}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(err, diff)
	}
}

func TestParseCmdlineErrors(t *testing.T) {
	for line, want := range map[string]string{
		"console=ttyS0 quiet":       "no kernel argument attest.root",
		"attest.root=layers:many":   "not a number of layers",
		"attest.root=cloud":         "unknown kind of root",
		"attest.root=layers:100000": "100000 layers",
	} {
		if _, err := parseCmdline(line); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q", line, err, want)
		}
	}
}
