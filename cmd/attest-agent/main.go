// Command attest-agent is the part of attest that runs in guests: a quarter of the
// attest command, which can do the same. attest puts it there; nobody calls it.
package main

import (
	"fmt"
	"os"

	"github.com/attest-vm/attest/internal/inguest"
)

func main() {
	inguest.Main()
	fmt.Fprintln(os.Stderr, "attest-agent: attest runs this in its guests, as /init and as the agent")
	os.Exit(2)
}
