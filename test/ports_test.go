package test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/attest-vm/attest"
)

// TestVDEPort has one machine whose QEMU is started with -netdev vde, as a start
// script would, and one on a stream socket.
func TestVDEPort(t *testing.T) {
	lab := newPortsLab(t, attest.HostConfig{})
	dir, err := lab.VDESocket(1)
	if err != nil {
		t.Fatal(err)
	}
	wrapQEMU(t, "client", `vde,sock=`+dir)
	testTransfers(t, lab)
	checkNetdev(t, lab, "client", "vde,")
	checkNetdev(t, lab, "server", "stream,")
}

// TestDatagramPorts has machines that send each frame as a message.
func TestDatagramPorts(t *testing.T) {
	lab := newPortsLab(t, attest.HostConfig{Packets: true})
	testTransfers(t, lab)
	checkNetdev(t, lab, "client", "dgram,")
	checkNetdev(t, lab, "server", "dgram,")
}

// checkNetdev looks at how the QEMU of a machine was really started.
func checkNetdev(t *testing.T, lab *attest.Lab, machine, kind string) {
	t.Helper()
	for _, p := range processes() {
		if p.belongsTo(lab.Host().StateDir()) && bytes.Contains(p.args, []byte("guest="+machine+",")) {
			if !bytes.Contains(p.args, []byte("-netdev\x00"+kind)) {
				t.Errorf("%s is not on -netdev %s: %q", machine, kind, p.args)
			}
			return
		}
	}
	t.Errorf("no QEMU of %s", machine)
}

func newPortsLab(t *testing.T, config attest.HostConfig) *attest.Lab {
	t.Helper()
	host, err := attest.OpenHost(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	lab, err := host.NewLab(t.Context(), attest.LabConfig{Machines: []attest.MachineConfig{
		{Name: "client", Image: curl, Memory: 256},
		{Name: "server", Image: nginx, Memory: 256},
	}})
	if err != nil {
		host.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
		if err := host.Close(); err != nil {
			t.Error(err)
		}
	})
	return lab
}

// wrapQEMU has the QEMU of one machine started with another -netdev.
func wrapQEMU(t *testing.T, machine, netdev string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qemu-system-x86_64")
	script := `#!/bin/bash
args=()
while [ $# -gt 0 ]; do
	args+=("$1")
	if [ "$1" = -netdev ] && [[ "${args[*]}" = *guest=` + machine + `,* ]]; then
		args+=("` + netdev + `,id=${2##*id=}")
		shift
	fi
	shift
done
exec qemu-system-x86_64 "${args[@]}"
`
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ATTEST_QEMU", path)
}

// testTransfers sends both ways between client and server, byte for byte.
func testTransfers(t *testing.T, lab *attest.Lab) {
	t.Helper()
	if err := lab.StartAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	client, server := tried{lab.Machine("client"), t}, tried{lab.Machine("server"), t}
	server.succeed(`
		head -c 8M /dev/urandom > /tmp/down
		systemd-run -q --unit=receive bash -c 'perl -MIO::Socket::INET -e '\''
			$l = IO::Socket::INET->new(Listen => 1, LocalPort => 9000) or die; $c = $l->accept; print while <$c>'\'' > /tmp/up'
		cp /tmp/down /var/www/html/`)
	if err := server.WaitForUnit(t.Context(), "nginx.service"); err != nil {
		t.Fatal(err)
	}
	server.succeed("until grep -q :2328 /proc/net/tcp; do sleep 0.1; done") // a try to connect would be its first client
	sum := server.succeed("sha256sum < /tmp/down")
	if got := client.succeed("curl -sf http://server/down | tee /tmp/back | sha256sum"); got != sum {
		t.Errorf("downloaded %s, want %s", got, sum)
	}
	client.succeed("cat /tmp/back > /dev/tcp/server/9000")
	server.succeed("while systemctl is-active -q receive; do sleep 0.1; done")
	if got := server.succeed("sha256sum < /tmp/up"); got != sum {
		t.Errorf("uploaded %s, want %s", got, sum)
	}
}
