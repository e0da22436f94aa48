// Package inguest is what a program of attest's is inside of a guest.
package inguest

import (
	"os"

	"github.com/attest-vm/attest/internal/agent"
	"github.com/attest-vm/attest/internal/boot"
)

// Main returns if argv[0] is none of a guest's: its /init, its agent, or what puts
// the agent into a guest that came without it.
func Main() {
	switch os.Args[0] {
	case boot.InitArg0:
		if os.Getpid() == 1 {
			boot.Init()
		}
	case boot.AgentArg0:
		os.Exit(agent.Main(os.Args))
	case agent.InstallArg0:
		os.Exit(agent.Install(os.Args))
	}
}
