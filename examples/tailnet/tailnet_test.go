//go:build tailnet

// Package tailnet is tailnet_test.star in Go: a control server with a relay (headscale), and
// three nodes (tailscale). Run it with
//
//	examples/tailnet/build-programs
//	go test -tags tailnet -v -timeout 60m ./examples/tailnet
package tailnet

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/attest-vm/attest"
)

// forget makes a node a new one. A node that was restored dials anew when it sees how late
// it is, and a logout at that moment may never end.
const forget = "systemctl kill --signal=KILL tailscaled; systemctl stop tailscaled; rm -r /var/lib/tailscale; systemctl start tailscaled"

const programs = "../../out/tailnet/"

var control = attest.Debian{
	Title:    "tailnet-control",
	Packages: []string{"openssl"},
	Files: map[string]attest.File{
		"/usr/local/bin/headscale":              {Path: programs + "headscale", Mode: 0o755},
		"/etc/headscale/config.yaml":            {Path: "headscale.yaml"},
		"/etc/headscale/policy.json":            {Path: "everybody.json"},
		"/etc/systemd/system/headscale.service": {Path: "headscale.service"},
	},
}

var node = attest.Debian{
	Title: "tailnet-node",
	Files: map[string]attest.File{
		"/usr/local/bin/tailscale":               {Path: programs + "tailscale", Mode: 0o755},
		"/usr/local/bin/tailscaled":              {Path: programs + "tailscaled", Mode: 0o755},
		"/etc/systemd/system/tailscaled.service": {Path: "tailscaled.service"},
	},
}

// tailnet is the state in which three nodes have joined with one key, and echo what comes to
// port 8000.
func tailnet(t *testing.T) *attest.TestSnapshot {
	lab := attest.New(t,
		attest.MachineConfig{Name: "a", Image: node, Memory: 384},
		attest.MachineConfig{Name: "b", Image: node, Memory: 384},
		attest.MachineConfig{Name: "c", Image: node, Memory: 384},
		attest.MachineConfig{Name: "control", Image: control, Memory: 384},
	)
	lab.WarmUp()
	lab.StartAll()
	server := lab.Machine("control")
	server.Succeed("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=control -addext subjectAltName=DNS:control -keyout /etc/headscale/control.key -out /etc/headscale/control.pem")
	certificate := server.Succeed("cat /etc/headscale/control.pem")
	server.Succeed("systemctl start headscale")
	server.WaitForOpenPort(443, attest.Unit("headscale"))
	server.Succeed("headscale users create lab")
	key := newKey(t, server, "--reusable --expiration 24h")
	nodes := []*attest.TestMachine{lab.Machine("a"), lab.Machine("b"), lab.Machine("c")}
	start := func(ctx context.Context, m *attest.Machine) error {
		if _, err := m.Succeed(ctx, "cat > /etc/control.pem; systemctl start tailscaled", attest.Input([]byte(certificate))); err != nil {
			return err
		}
		if err := m.WaitForOpenUnixSocket(ctx, "/run/tailscale/tailscaled.sock"); err != nil {
			return err
		}
		if _, err := m.Succeed(ctx, join(m.Name(), key)); err != nil {
			return err
		}
		_, err := m.Succeed(ctx, "systemd-run --unit=echo systemd-socket-activate --accept --inetd -l 8000 cat")
		return err
	}
	lab.WaitAll(start, attest.Group{nodes[0], nodes[1], nodes[2]})
	for _, m := range nodes {
		m.WaitUntilSucceeds(`test $(tailscale status --json | grep -c '"Online": true') -ge 3`)
	}
	return lab.Snapshot()
}

func newKey(t *testing.T, control *attest.TestMachine, options string) string {
	t.Helper()
	var users []struct{ ID int }
	var key struct{ Key string }
	decode(t, control.Succeed("headscale users list --output json"), &users)
	decode(t, control.Succeed(fmt.Sprintf("headscale preauthkeys create --output json --user %d %s", users[0].ID, options)), &key)
	return key.Key
}

func decode(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}

// join is the command with which a node joins.
func join(name, key string) string {
	return "SSL_CERT_FILE=/etc/control.pem tailscale up --login-server=https://control --netfilter-mode=off --accept-dns=false --timeout=10m --hostname=" + name + " --authkey=" + key
}

// address is the address that a node has in the tailnet.
func address(m *attest.TestMachine) string {
	return strings.TrimSpace(m.Succeed("tailscale ip -4"))
}

// hello is a command that says hello to another node, and hears it.
func hello(to *attest.TestMachine) string {
	return fmt.Sprintf(`timeout 20 bash -c 'exec 3<>/dev/tcp/%s/8000; echo hello >&3; read line <&3; test "$line" = hello'`, address(to))
}

// direct is a command that succeeds when a node is reached without the relay. Of the pings
// that find the way, the relay answers some.
func direct(to *attest.TestMachine) string {
	return fmt.Sprintf("tailscale ping --c 10 --timeout 10s %s | grep 'via [^D]'", address(to))
}

// relayed is a command that succeeds when a node is reached through the relay.
func relayed(to *attest.TestMachine) string {
	return fmt.Sprintf("tailscale ping --c 1 --timeout 10s --until-direct=false %s | grep 'via DERP(lab)'", address(to))
}

func TestTailnet(t *testing.T) {
	state := tailnet(t)
	for _, test := range []struct {
		name string
		run  func(t *testing.T, lab *attest.TestLab, a, b, c *attest.TestMachine)
	}{
		{"direct", testDirect},
		{"relay", testRelay},
		{"control is gone", testControlIsGone},
		{"taildrop", testTaildrop},
		{"a key is used once", testKeyIsUsedOnce},
		{"policy reload", testPolicyReload},
	} {
		t.Run(test.name, func(t *testing.T) {
			lab := state.Fork(t)
			test.run(t, lab, lab.Machine("a"), lab.Machine("b"), lab.Machine("c"))
		})
	}
}

func testDirect(t *testing.T, lab *attest.TestLab, a, b, c *attest.TestMachine) {
	a.WaitUntilSucceeds(direct(b))
	a.WaitUntilSucceeds(hello(b))
}

func testRelay(t *testing.T, lab *attest.TestLab, a, b, c *attest.TestMachine) {
	cut := lab.Network().Partition(a, b)
	a.WaitUntilSucceeds(relayed(b))
	a.WaitUntilSucceeds(hello(b))
	cut.Heal()
	a.WaitUntilSucceeds(direct(b))
}

func testControlIsGone(t *testing.T, lab *attest.TestLab, a, b, c *attest.TestMachine) {
	lab.Network().Isolate(lab.Machine("control"))
	a.WaitUntilSucceeds(hello(c))
}

func testTaildrop(t *testing.T, lab *attest.TestLab, a, b, c *attest.TestMachine) {
	a.Succeed("head -c 100000 /dev/urandom > /tmp/drop")
	a.WaitUntilSucceeds("tailscale file cp /tmp/drop " + address(b) + ":")
	b.Succeed("mkdir -p /tmp/in")
	b.WaitUntilSucceeds("tailscale file get /tmp/in; test -e /tmp/in/drop")
	if got, want := b.Succeed("sha256sum < /tmp/in/drop"), a.Succeed("sha256sum < /tmp/drop"); got != want {
		t.Errorf("got a file with %s, want %s", got, want)
	}
}

func testKeyIsUsedOnce(t *testing.T, lab *attest.TestLab, a, b, c *attest.TestMachine) {
	key := newKey(t, lab.Machine("control"), "--expiration 1h")
	for _, m := range []*attest.TestMachine{b, c} {
		m.Succeed(forget)
		m.WaitForOpenUnixSocket("/run/tailscale/tailscaled.sock")
	}
	b.Succeed(join("b", key))
	c.Fail(join("c", key))
}

// A policy that is changed counts at once, and connections that it forbids are not made.
func testPolicyReload(t *testing.T, lab *attest.TestLab, a, b, c *attest.TestMachine) {
	reload := func(src []string, dst string) {
		policy, err := json.Marshal(map[string]any{"acls": []any{map[string]any{"action": "accept", "src": src, "dst": []string{dst}}}})
		if err != nil {
			t.Fatal(err)
		}
		lab.Machine("control").Succeed("cat > /etc/headscale/policy.json; systemctl reload headscale", attest.Input(policy))
	}
	a.WaitUntilSucceeds(hello(b))
	reload([]string{address(a), address(c)}, address(c)+":*")
	a.WaitUntilFails(hello(b))
	a.WaitUntilSucceeds(hello(c))
	reload([]string{"*"}, "*:*")
	a.WaitUntilSucceeds(hello(b))
}
