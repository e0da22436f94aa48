package test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/attest-vm/attest"
)

// TestFork forks a lab of a machine that serves and one that asks, in the middle
// of a conversation.
func TestFork(t *testing.T) {
	t.Parallel()
	lab := attest.New(t,
		attest.MachineConfig{Name: "server", Memory: 256, Image: attest.Debian{}},
		attest.MachineConfig{Name: "client", Memory: 256, Image: attest.Debian{}},
		attest.MachineConfig{Name: "idle", Memory: 256, Image: attest.Debian{}},
	)
	server := lab.Machine("server")
	server.Succeed("echo before > /root/file; date +%s%N")
	lab.Machine("client").Succeed("ping -c1 server")
	for i := range 2 {
		start := time.Now()
		fork := lab.Fork(t)
		t.Logf("fork: %v", time.Since(start))
		fork.Machine("server").Succeed(fmt.Sprintf("grep before /root/file; echo %d > /root/file", i))
		t.Logf("first command: %v", time.Since(start))
		fork.Machine("client").Succeed("ping -c1 server")
		t.Logf("ping: %v", time.Since(start))
		t.Logf("%s", fork.Machine("client").Succeed("hostname; cat /etc/machine-id; cat /proc/sys/kernel/random/uuid; date +%s.%N"))
		t.Logf("%d", time.Now().Unix())
		if out := server.Succeed("cat /root/file"); out != "before\n" {
			t.Errorf("the fork's write is seen in the lab that it was forked from: %q", out)
		}
		again := fork.Fork(t)
		if out := again.Machine("server").Succeed("cat /root/file"); strings.TrimSpace(out) != fmt.Sprint(i) {
			t.Errorf("fork of a fork: %q", out)
		}
	}
}
