// Command hostile is what a guest does that nobody should trust: it takes the place of
// attest's agent and breaks the protocol (agent MODE), or attacks the networks that it is
// on (network MODE SECONDS INTERFACE).
package main

import (
	"fmt"
	"os"
)

func main() {
	if len(os.Args) >= 3 {
		switch os.Args[1] {
		case "agent":
			takeOver(os.Args[2])
			return
		case "network":
			attackNetwork(os.Args[2:])
			return
		}
	}
	fmt.Fprintln(os.Stderr, "usage: hostile agent MODE | hostile network MODE SECONDS INTERFACE")
	os.Exit(2)
}
