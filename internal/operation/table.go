package operation

import (
	"slices"
	"time"

	"github.com/attest-vm/attest"
)

// waitLimit is the NixOS driver's limit of execute and of all waits. Where the
// caller gives none, it is attest's own default, scaled to the host's speed.
const waitLimit = 15 * time.Minute

var (
	commandParam = Param{Name: "command", Type: String, Doc: "a bash script"}
	// The first is for waits, which always have a limit; the second for
	// commands, which may have none.
	limitParam = Param{Name: "timeout", Type: Duration, Default: waitLimit, Doc: "the limit of the wait; more than the default on a host without hardware virtualisation"}
	timeParam  = Param{Name: "timeout", Type: Duration, Default: Absent, Doc: "the limit of each command; none unless given"}
	userParam  = Param{Name: "user", Type: String, Default: Absent, Doc: "ask the service manager of this user instead of the system's"}
	portParam  = Param{Name: "port", Type: Int, Doc: "a TCP port, 1 to 65535"}
	addrParam  = Param{Name: "addr", Type: String, Default: "localhost", Doc: "where to connect to, as seen from the guest"}
)

// The table in the order of the reference; each subject has a file.
var table = slices.Concat(commandsTable, waitsTable, filesTable, powerTable, consolesTable, terminalTable, keyboardTable, screenTable, othersTable, snapshotsTable, machinesTable, portsTable, linksTable, networkTable)

// limit, user and address are the options that the arguments of these names stand for.

func (a Args) limit() []attest.Option {
	if !a.Given("timeout") {
		return nil
	}
	return []attest.Option{attest.Timeout(a.Duration("timeout"))}
}

func (a Args) user() []attest.Option {
	if !a.Given("user") {
		return nil
	}
	return []attest.Option{attest.User(a.String("user"))}
}

func (a Args) address() []attest.Option {
	if !a.Given("addr") {
		return nil
	}
	return []attest.Option{attest.Address(a.String("addr"))}
}
