package agent

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/attest-vm/attest/internal/wire"
)

func TestHostsText(t *testing.T) {
	hosts := []wire.Host{
		{Name: "client", Addresses: []netip.Addr{netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("2001:db8:1::1")}},
		{Name: "server", Addresses: []netip.Addr{netip.MustParseAddr("192.168.1.2")}},
	}
	const block = "# attest: machines of this lab\n192.168.1.1 client\n2001:db8:1::1 client\n192.168.1.2 server\n# attest: end\n"
	for _, tt := range []struct{ name, old, want string }{
		{"nothing of ours", "127.0.0.1 localhost\n", block + "127.0.0.1 localhost\n"},
		{"the same again", "a\n" + block + "b\n", "a\n" + block + "b\n"},
		{"another lab's", "a\n# attest: machines of this lab\n10.0.0.1 old\n# attest: end\nb\n", "a\n" + block + "b\n"},
		{"a block without an end", "# attest: machines of this lab\n10.0.0.1 old\n", block + "# attest: machines of this lab\n10.0.0.1 old\n"},
	} {
		if got := hostsText(tt.old, hosts); got != tt.want {
			t.Errorf("%s: got\n%s\nwant\n%s", tt.name, got, tt.want)
		}
	}
}

func TestParseUser(t *testing.T) {
	const passwd = "root:x:0:0:root:/root:/bin/bash\nbroken\nweb:x:1000:1001:,,,:/srv/web:/bin/sh\nbare:x:2000:2000:::\n"
	const group = "root:x:0:\nweb:x:1001:\nadm:x:4:root,web\nbroken:x:no:web\n"
	for name, want := range map[string]user{
		"root": {name: "root", home: "/root", shell: "/bin/bash", groups: []uint32{0, 4}},
		"web":  {name: "web", home: "/srv/web", shell: "/bin/sh", uid: 1000, gid: 1001, groups: []uint32{1001, 4}},
		"1000": {name: "web", home: "/srv/web", shell: "/bin/sh", uid: 1000, gid: 1001, groups: []uint32{1001, 4}},
		"bare": {name: "bare", home: "/", shell: "/bin/sh", uid: 2000, gid: 2000, groups: []uint32{2000}},
	} {
		got := parseUser(passwd, group, name)
		if got == nil || got.name != want.name || got.home != want.home || got.shell != want.shell ||
			got.uid != want.uid || got.gid != want.gid || !equal(got.groups, want.groups) {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	if u := parseUser(passwd, group, "nobody"); u != nil {
		t.Errorf("nobody: %+v", u)
	}
}

func equal(a, b []uint32) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

const insideVariable = "ATTEST_TEST_NAMESPACE"

// An identity is applied twice, the second time another one, in namespaces of
// its own, by this test program started again.
func TestIdentity(t *testing.T) {
	if os.Getenv(insideVariable) != "" {
		identityInside(t)
		return
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestIdentity$", "-test.v")
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func identityInside(t *testing.T) {
	// Two cards that have each other's names.
	a, b := "52:54:00:12:01:01", "52:54:00:12:02:01"
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "net2"}, PeerName: "net1"}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	for name, mac := range map[string]string{"net2": a, "net1": b} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		hw, err := net.ParseMAC(mac)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetHardwareAddr(l, hw); err != nil {
			t.Fatal(err)
		}
	}
	root := t.TempDir()
	sh := newShell(t.Logf)
	defer sh.close()
	for _, number := range []string{"1", "2", "2"} {
		id := wire.Identity{
			Hostname: "machine" + number, MachineID: strings.Repeat(number, 32),
			Hosts: []wire.Host{{Name: "machine" + number, Addresses: []netip.Addr{netip.MustParseAddr("192.168.1." + number)}}},
			Interfaces: []wire.Interface{
				{MAC: a, Name: "net1", Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.1." + number + "/24"), netip.MustParsePrefix("2001:db8:1::" + number + "/64")}},
				{MAC: b, Name: "net2", Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.2." + number + "/24")}},
			},
		}
		if err := applyIdentity(id, root); err != nil {
			t.Fatal(err)
		}
		if name, _ := os.Hostname(); name != "machine"+number {
			t.Errorf("host name %q", name)
		}
		// Shells that were warm before have the name, too.
		sh.renew()
		for range 3 {
			if err := sh.warm(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := said(t, sh, "echo $HOSTNAME"); got != "machine"+number+"\n" {
				t.Errorf("a shell of machine%s says %q", number, got)
			}
		}
		for file, want := range map[string]string{
			"etc/hostname": "machine" + number + "\n", "etc/machine-id": strings.Repeat(number, 32) + "\n",
		} {
			if got, err := os.ReadFile(filepath.Join(root, file)); string(got) != want {
				t.Errorf("%s: %q, %v", file, got, err)
			}
		}
		hosts, _ := os.ReadFile(filepath.Join(root, "etc/hosts"))
		if !strings.Contains(string(hosts), "192.168.1."+number+" machine"+number+"\n") || strings.Count(string(hosts), "machine") != 2 || !strings.Contains(string(hosts), "localhost") {
			t.Errorf("hosts:\n%s", hosts)
		}
		for _, w := range id.Interfaces {
			l, err := netlink.LinkByName(w.Name)
			if err != nil || l.Attrs().HardwareAddr.String() != w.MAC {
				t.Fatalf("%s: %+v, %v", w.Name, l, err)
			}
			addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
			if err != nil {
				t.Fatal(err)
			}
			have := map[string]bool{}
			for _, x := range addrs {
				if !x.IP.IsLinkLocalUnicast() {
					have[x.IPNet.String()] = true
				}
			}
			if len(have) != len(w.Addresses) {
				t.Errorf("%s has %v, want %v", w.Name, have, w.Addresses)
			}
			for _, p := range w.Addresses {
				if !have[p.String()] {
					t.Errorf("%s has %v, want %v", w.Name, have, w.Addresses)
				}
			}
		}
	}
	missing := wire.Identity{Interfaces: []wire.Interface{{MAC: "02:00:00:00:00:09"}}}
	if err := applyIdentity(missing, root); err == nil || !strings.Contains(err.Error(), "no network interface has the address 02:00:00:00:00:09") {
		t.Errorf("an interface that is not there: %v", err)
	}
}

// texts takes what a command writes.
type texts struct{ bytes.Buffer }

func (b *texts) Write(_ int, p []byte) (int, error) { return b.Buffer.Write(p) }

// said is what a command says in a warm shell.
func said(t *testing.T, sh *shell, script string) string {
	t.Helper()
	c, err := sh.start(t.Context(), wire.ExecRequest{}, []byte(script))
	if err != nil {
		t.Fatal(err)
	}
	var out texts
	r, err := sh.wait(t.Context(), c, wire.ExecRequest{}, nil, &out)
	if err != nil || r.ExitCode != 0 || !r.Warm {
		t.Fatalf("%s: %v, %+v", script, err, r)
	}
	return out.String()
}

// The journal of a guest that gets another machine-id is found under the new one.
func TestLinkJournals(t *testing.T) {
	root := t.TempDir()
	old, id := strings.Repeat("a", 32), strings.Repeat("b", 32)
	dir := filepath.Join(root, "run/log/journal")
	if err := os.MkdirAll(filepath.Join(dir, old), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{old, id, id} { // at the boot, after a restore, and again
		os.Chmod(filepath.Join(root, "etc/machine-id"), 0o644) // only root writes to it as it is
		if err := setMachineID(root, id); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, old, "system.journal"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, id, "system.journal")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(root, "var/log/journal")); err == nil {
		t.Error("a journal on disk was made")
	}
}

func TestWriteIfChanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "hostname")
	for _, content := range []string{"first\n", "longer than first\n", "short\n", "short\n", ""} {
		if err := writeIfChanged(path, content, 0o640); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != content {
			t.Errorf("got %q and %v, want %q", got, err, content)
		}
	}
}
