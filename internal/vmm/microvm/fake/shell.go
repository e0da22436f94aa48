package fake

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
)

// ShellPort is where a guest without attest's agent has its root shell.
const ShellPort = 1234

// StartAgent is what its shell takes for an order to start the agent.
const StartAgent = "start the agent"

// bash is a shell that is root in namespaces of its own, in which it can do no harm to the
// host and leaves nothing on it.
const bash = `mount -t tmpfs none /run; mount -t tmpfs none /tmp; mount -t tmpfs none /root; mount -t tmpfs none /dev/shm
echo "Spawning backdoor root shell..."; exec bash --norc`

// shell is one shell of such a guest: it repeats what it is told, or does it.
func (v *Vsock) shell(c net.Conn) {
	g := v.guest
	g.mu.Lock()
	g.conns[c] = true
	g.mu.Unlock()
	defer c.Close()
	if v.Bash {
		cmd := exec.Command("unshare", "--user", "--map-root-user", "--mount", "--uts", "--ipc", "--net", "--pid", "--mount-proc", "--fork", "--kill-child", "bash", "-c", bash)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = &gated{c, g, bufio.NewReader(c)}, c, os.Stderr
		if err := cmd.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "the guest's shell:", err)
		}
		return
	}
	fmt.Fprintln(c, "Spawning backdoor root shell...")
	for in := bufio.NewScanner(c); in.Scan(); {
		if strings.TrimSpace(in.Text()) == StartAgent {
			v.mu.Lock()
			v.started = true
			v.mu.Unlock()
		}
		fmt.Fprintln(c, "told: "+in.Text())
	}
}
