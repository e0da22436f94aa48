package fake

import (
	"bufio"
	"fmt"
	"net"
	"strings"
)

// ShellPort is where a guest without attest's agent has its root shell.
const ShellPort = 1234

// StartAgent is what its shell takes for an order to start the agent.
const StartAgent = "start the agent"

// shell is one shell of such a guest: it repeats what it is told.
func (v *Vsock) shell(c net.Conn) {
	g := v.guest
	g.mu.Lock()
	g.conns[c] = true
	g.mu.Unlock()
	defer c.Close()
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
