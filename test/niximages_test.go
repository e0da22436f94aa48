package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestNixImages has Nix build the disks of machines on microVMs, and this host's programs check
// and unpack them. TestNixBuild has a guest mount them.
func TestNixImages(t *testing.T) {
	t.Parallel()
	nix := newNix(t)
	server := "-r-xr-xr-x 0:0 STORE/system-server/init\nlrwxrwxrwx 0:0 STORE/system-server/etc -> /nix/store/etc-server\n-r--r--r-- 0:0 STORE/etc-server\n"
	client := strings.ReplaceAll(server, "server", "client")
	init := "lrwxrwxrwx 0:0 /sbin/init -> /nix/store/system-server/init\n"
	for attribute, want := range map[string]struct {
		lines string // that have to be there
		not   string
	}{
		"root":    {"drwxr-xr-x 0:0 /etc\ndrwx------ 0:0 /root\n" + init + strings.ReplaceAll(server, "STORE", "/nix/store"), "client"},
		"minimal": {"drwxr-xr-x 0:0 /nix/.ro-store\ndrwxr-xr-x 0:0 /nix/.rw-store/upper\ndrwxr-xr-x 0:0 /nix/.rw-store/work\ndrwxr-xr-x 0:0 /nix/store\n" + init, "0:0 /nix/store/"},
		"store":   {strings.ReplaceAll(server, "STORE", ""), "client"},
		"shared":  {strings.ReplaceAll(server+client, "STORE", ""), "nix/store/nix"},
	} {
		t.Run(attribute, func(t *testing.T) {
			got := nix.unpack(t, nix.build("images." + attribute)[0])
			for line := range strings.Lines(want.lines) {
				if !strings.Contains("\n"+got, "\n"+line) {
					t.Errorf("there is no %s", line)
				}
			}
			if strings.Contains(got, want.not) {
				t.Errorf("there is %q", want.not)
			}
			if t.Failed() {
				t.Logf("in the image:\n%s", got)
			}
		})
	}
	// The same store is the same file, built whenever.
	if _, err := nix.run("nix-build", "--no-out-link", "--check", "-A", "images.shared"); err != nil {
		t.Error(err)
	}
}

// unpack checks the image in a directory, and returns a list of its content, of a store's paths
// without their hashes.
func (n *nixHost) unpack(t *testing.T, dir string) string {
	t.Helper()
	script := `fsck.erofs --extract="$2/x" "$1"/store.erofs`
	if _, err := os.Stat(filepath.Join(dir, "rootfs.ext4")); err == nil {
		script = `e2fsck -fn "$1/rootfs.ext4"; mkdir "$2/x"; debugfs -R "rdump / $2/x" "$1/rootfs.ext4"`
	}
	cmd := exec.Command("sh", "-ec", "{ "+script+`; } >&2; cd "$2/x"; find . -printf '%M %U:%G %P -> %l\n'`, "unpack", dir, t.TempDir())
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	list := regexp.MustCompile(`[0-9a-z]{32}-(nixos-)?`).ReplaceAllString(string(out), "")
	list = strings.ReplaceAll(strings.ReplaceAll(list, filepath.Join(n.dir, "store"), "/nix/store"), " -> \n", "\n")
	return regexp.MustCompile(`(?m)^(\S+ \S+) `).ReplaceAllString(list, "$1 /")
}
