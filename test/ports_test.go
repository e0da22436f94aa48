package test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
)

// TestForeignPorts has one machine whose QEMU is started with -netdev vde, as a start
// script would, one whose QEMU takes a TAP from a network namespace, and a plain program
// of this host that talks to both.
func TestForeignPorts(t *testing.T) {
	needTAP(t)
	// They boot: nobody else could start from a snapshot of such a QEMU.
	lab := newPortsLab(t, attest.HostConfig{Boot: attest.BootCold})
	dir, err := lab.VDESocket(1)
	if err != nil {
		t.Fatal(err)
	}
	holder, err := lab.StartProgram(t.Context(), attest.Program{Args: []string{"sleep", "1000000"}, Name: "server-tap", VMM: true})
	if err != nil {
		t.Fatal(err)
	}
	enter := []string{"nsenter", "-t", strconv.Itoa(holder.Pid()), "-n"}
	if os.Geteuid() != 0 {
		enter = append(enter, "-U", "--preserve-credentials")
	}
	wrapQEMU(t, map[string]wrap{
		"client": {netdev: "vde,sock=" + dir},
		"server": {netdev: "tap,ifname=tap1,script=no,downscript=no", by: enter},
	})
	testTransfers(t, lab)
	checkNetdev(t, lab, "client", "vde,")
	checkNetdev(t, lab, "server", "tap,")
	client, server := tried{lab.Machine("client"), t}, tried{lab.Machine("server"), t}

	addresses := server.Addresses()
	out, err := runProgram(t, lab, fmt.Sprintf("ping -q -c 3 -W 60 %v && ping -q -c 3 -W 60 %v && curl -sf http://%v/down | sha256sum", client.Addresses()[0], addresses[1], addresses[0]))
	if sum := server.succeed("sha256sum < /tmp/down"); err != nil || !strings.HasSuffix(out, sum) {
		t.Errorf("the program: %v, %s, want %s", err, out, sum)
	}

	// The same faults apply. The address of what is on VDE has told who it is.
	fault, err := lab.Network().Isolate(t.Context(), client.Machine)
	if err != nil {
		t.Fatal(err)
	}
	if client.execute("curl -sS --max-time 3 http://server/").ExitCode == 0 {
		t.Error("a machine that is isolated reaches another")
	}
	if out, err := runProgram(t, lab, fmt.Sprintf("ping -q -c 3 -W 2 %v", client.Addresses()[0])); err == nil {
		t.Errorf("a program reaches a machine that is isolated: %s", out)
	}
	if fault.Affected() == 0 {
		t.Errorf("%v has met no frame", fault)
	}
	if err := fault.Heal(t.Context()); err != nil {
		t.Error(err)
	}
}

// runProgram runs a shell's script as a program of this host on the lab's network.
func runProgram(t *testing.T, lab *attest.Lab, script string) (string, error) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	program, err := lab.StartProgram(t.Context(), attest.Program{Args: []string{"sh", "-c", script}, Name: "visitor", Stdout: w, Stderr: w})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	out, _ := io.ReadAll(r)
	return string(out), program.Wait(t.Context())
}

// needTAP skips a test for an ordinary user whom the host does not let make a
// TAP; root is let.
func needTAP(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil && os.Geteuid() != 0 {
		t.Skip("this user may not make a TAP here: ", err)
	}
	if err == nil {
		f.Close()
	}
}

// TestDatagramPorts has machines that send each frame as a message.
func TestDatagramPorts(t *testing.T) {
	t.Parallel()
	lab := newPortsLab(t, attest.HostConfig{Packets: true})
	testTransfers(t, lab)
	checkNetdev(t, lab, "client", "dgram,")
	checkNetdev(t, lab, "server", "dgram,")
	testForwardPort(t, tried{lab.Machine("server"), t})
}

// checkNetdev looks at how the QEMU of a machine was really started.
func checkNetdev(t *testing.T, lab *attest.Lab, machine, kind string) {
	t.Helper()
	if p := qemuOf(t, lab, machine); !bytes.Contains(p.args, []byte("-netdev\x00"+kind)) {
		t.Errorf("%s is not on -netdev %s: %q", machine, kind, p.args)
	}
}

// qemuOf is the QEMU of a machine.
func qemuOf(t *testing.T, lab *attest.Lab, machine string) process {
	t.Helper()
	for _, p := range processes() {
		if p.belongsTo(lab.Host().StateDir()) && bytes.Contains(p.args, []byte("guest="+machine+",")) {
			return p
		}
	}
	t.Fatalf("no QEMU of %s", machine)
	return process{}
}

func newPortsLab(t *testing.T, config attest.HostConfig) *attest.Lab {
	t.Helper()
	return openLab(t.Context(), t, config, attest.LabConfig{Machines: []attest.MachineConfig{
		{Name: "client", Image: curl, Memory: 256},
		{Name: "server", Image: nginx, Memory: 256},
	}})
}

func openLab(ctx context.Context, t *testing.T, config attest.HostConfig, labConfig attest.LabConfig) *attest.Lab {
	t.Helper()
	host, err := attest.OpenHost(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	lab, err := host.NewLab(ctx, labConfig)
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

// A wrap is how the QEMU of a machine is started otherwise.
type wrap struct {
	netdev string   // what comes after -netdev
	by     []string // the command that runs it
}

// wrapQEMU has the QEMUs of some machines started with another -netdev, by another
// command.
func wrapQEMU(t *testing.T, machines map[string]wrap) {
	t.Helper()
	var choose strings.Builder
	for name, w := range machines {
		fmt.Fprintf(&choose, "*guest=%s,*) netdev='%s' by='%s' ;;\n", name, w.netdev, strings.Join(w.by, " "))
	}
	path := filepath.Join(t.TempDir(), "qemu-system-x86_64")
	script := `#!/bin/bash
netdev= by=
case "$*" in
` + choose.String() + `esac
args=()
while [ $# -gt 0 ]; do
	args+=("$1")
	if [ "$1" = -netdev ] && [ "$netdev" ]; then
		args+=("$netdev,id=${2##*id=}")
		shift
	fi
	shift
done
exec $by qemu-system-x86_64 "${args[@]}"
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

// testForwardPort reaches services of a machine from this host. It powers the
// machine off.
func testForwardPort(t *testing.T, m tried) {
	forward := func(guestPort int) string {
		port, err := m.ForwardPort(t.Context(), 0, guestPort)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("127.0.0.1:%d", port)
	}
	addr := forward(80)
	want := strings.Fields(m.succeed("sha256sum < /tmp/down"))[0]
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			r, err := client.Get("http://" + addr + "/down")
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Body.Close()
			h := sha256.New()
			if n, err := io.Copy(h, r.Body); err != nil || fmt.Sprintf("%x", h.Sum(nil)) != want {
				t.Errorf("%d bytes, %v, sum %x; want %s", n, err, h.Sum(nil), want)
			}
		})
	}
	all.Wait()

	// What listens on one address of the machine alone.
	m.succeed(`systemd-run -q --unit=own bash -c 'perl -MIO::Socket::INET -e '\''
		$l = IO::Socket::INET->new(Listen => 1, LocalAddr => "` + m.Addresses()[0].String() + `", LocalPort => 9001) or die;
		$c = $l->accept; print $c "from ", $c->peerhost, "\n"'\'
		until grep -q :2329 /proc/net/tcp; do sleep 0.1; done`)
	conn, err := net.Dial("tcp", forward(9001))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "from "+m.Addresses()[0].String()+"\n" {
		t.Errorf("%q, %v", got, err)
	}

	_, port, _ := net.SplitHostPort(addr)
	taken, _ := strconv.Atoi(port)
	_, err = m.ForwardPort(t.Context(), taken, 80)
	if infra := errorAs[*attest.InfraError](t, err); !strings.Contains(infra.Error(), "which something else uses") {
		t.Error(infra)
	}
	for _, bad := range [][2]int{{-1, 80}, {65536, 80}, {0, 0}, {0, 65536}} {
		_, err := m.ForwardPort(t.Context(), bad[0], bad[1])
		errorAs[*attest.ConfigError](t, err)
	}
	if err := m.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if conn, err := net.Dial("tcp", addr); err == nil {
		conn.Close()
		t.Error("the port is open when the machine is off")
	}
}

// TestEgress has a machine with a way out to services of this host, and one
// without.
func TestEgress(t *testing.T) {
	t.Parallel()
	var served atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		h := sha256.New()
		n, _ := io.Copy(h, r.Body)
		fmt.Fprintf(w, "%d bytes, %x", n, h.Sum(nil))
	}))
	defer server.Close()
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	port := server.URL[strings.LastIndexByte(server.URL, ':')+1:]
	otherPort := other.URL[strings.LastIndexByte(other.URL, ':')+1:]

	var mu sync.Mutex
	var seen []event.Egress
	var bus event.Bus
	bus.Subscribe(func(r event.Record) {
		if e, ok := r.Event.(event.Egress); ok {
			mu.Lock()
			seen = append(seen, e)
			mu.Unlock()
		}
	})
	lab := openLab(event.WithBus(t.Context(), &bus), t, attest.HostConfig{}, attest.LabConfig{Machines: []attest.MachineConfig{
		{Name: "open", Image: curl, Memory: 256, Egress: []string{"host:" + port, "deb.example.org"}},
		{Name: "client", Image: curl, Memory: 256},
	}})
	if err := lab.StartAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	open, closed := tried{lab.Machine("open"), t}, tried{lab.Machine("client"), t}
	open.succeed("head -c 5M /dev/urandom > /tmp/up")
	want := "5242880 bytes, " + strings.Fields(open.succeed("sha256sum < /tmp/up"))[0]
	for _, host := range []string{"10.0.2.2", "[fec0::2]"} {
		url := "http://" + host + ":" + port + "/"
		if host != "10.0.2.2" {
			// The test's server is on IPv4 alone, and the guest sees that.
			if r := open.execute("curl -sS --max-time 60 " + url); r.ExitCode != 7 {
				t.Errorf("%s: %+v", url, r)
			}
			continue
		}
		if got := open.succeed("curl -sSf --max-time 60 --data-binary @/tmp/up " + url); got != want {
			t.Errorf("%s: %q, want %q", url, got, want)
		}
	}
	if r := open.execute("curl -sS --max-time 60 http://10.0.2.2:" + otherPort); r.ExitCode != 7 { // refused
		t.Errorf("another port: %+v", r)
	}
	if r := open.execute("curl -sS --max-time 60 http://example.org/"); r.ExitCode != 6 { // no such name
		t.Errorf("another name: %+v", r)
	}
	if r := open.execute("ping -c 1 -W 2 192.0.2.1 2>&1 || curl -sS --max-time 60 http://192.0.2.1/"); r.ExitCode != 7 {
		t.Errorf("another address: %+v", r)
	}
	if got := open.succeed("getent hosts client"); !strings.Contains(got, "client") {
		t.Errorf("a machine's name: %q", got)
	}
	if r := closed.execute("curl -sS --max-time 60 http://10.0.2.2:" + port); r.ExitCode != 7 {
		t.Errorf("a machine without a way out: %+v", r)
	}
	open.succeed("exec 3<>/dev/udp/192.0.2.1/999; until ! echo hello >&3; do sleep 0.1; done 2>/dev/null", attest.Timeout(time.Minute)) // and that is an error
	if err := open.Block(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := open.execute("curl -sS --max-time 2 http://10.0.2.2:" + port); r.ExitCode == 0 {
		t.Error("a machine without cables has a way out")
	}
	if err := open.Unblock(t.Context()); err != nil {
		t.Fatal(err)
	}
	open.succeed("until curl -sS --max-time 60 http://10.0.2.2:"+port+"; do sleep 0.1; done", attest.Timeout(2*time.Minute))
	if n := served.Load(); n != 2 {
		t.Errorf("served %d times", n)
	}
	for _, want := range []event.Egress{
		{Destination: "10.0.2.2:" + port, Protocol: "tcp", Name: "host", Allowed: true},
		{Destination: "10.0.2.2:" + otherPort, Protocol: "tcp", Name: "host"},
		{Destination: "example.org", Protocol: "dns"},
		{Destination: "192.0.2.1:80", Protocol: "tcp"},
	} {
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			mu.Lock()
			found := slices.ContainsFunc(seen, func(e event.Egress) bool {
				return e.Machine == "open" && e.Destination == want.Destination && e.Protocol == want.Protocol &&
					e.Name == want.Name && e.Allowed == want.Allowed && (!e.Allowed || e.Sent > 5<<20 && e.Received > 100)
			})
			all := fmt.Sprintf("%+v", seen)
			mu.Unlock()
			if found {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%+v is not among %s", want, all)
			}
		}
	}
}

// openPorts has everything on a lab's network that a process of its own, a
// socket or a namespace belongs to.
func openPorts(t *testing.T, lab *attest.Lab) {
	if _, err := lab.VDESocket(1); err != nil {
		t.Fatal(err)
	}
	if _, err := lab.Machines()[0].ForwardPort(t.Context(), 0, 22); err != nil {
		t.Fatal(err)
	}
	for _, vmm := range []bool{false, true} {
		// The child is an orphan when its parent is killed.
		p := attest.Program{Args: []string{"sh", "-c", "sleep 1000000 & exec sleep 1000000"}, VMM: vmm}
		if _, err := lab.StartProgram(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
}

// kill -9 leaves no port of any kind.
func TestKillWithPorts(t *testing.T) {
	needTAP(t)
	t.Parallel()
	killVictim(t, "ports")
}

// killVictim kills attest while programs run that its kind of victim has started
// beside a machine, and expects nothing to be left.
func killVictim(t *testing.T, kind string) {
	t.Helper()
	state := newStateDir(t)
	p, tree, running := startVictim(t, state, kind, patience)
	if !running {
		t.Fatalf("the machine does not run: %s", p.said())
	}
	if _, ok := find(tree, "sleep\x001000000"); !ok {
		t.Error("the programs do not run")
	}
	p.cmd.Process.Kill()
	waitForNothing(t, state, tree)
}
