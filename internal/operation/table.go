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
	limitParam = Param{Name: "timeout", Type: Duration, Default: waitLimit, Doc: "the limit of the wait; the default is longer on a host without hardware virtualisation"}
	timeParam  = Param{Name: "timeout", Type: Duration, Default: Absent, Doc: "the limit of each command; none unless given"}
	unitParam  = Param{Name: "unit", Type: String, Doc: "a systemd unit, such as `nginx.service`"}
	userParam  = Param{Name: "user", Type: String, Default: Absent, Doc: "ask the service manager of this user instead of the system's"}
	portParam  = Param{Name: "port", Type: Int, Doc: "a TCP port, 1 to 65535"}
	addrParam  = Param{Name: "addr", Type: String, Default: "localhost", Doc: "where to connect to, as seen from the guest"}
)

// commandParams are how any command can be run.
var commandParams = []Param{
	{Name: "stdin", Type: Bytes, Default: Absent, Named: true, Doc: "what the command reads; nothing unless given"},
	{Name: "user", Type: String, Default: Absent, Named: true, Doc: "run it as this user, in the user's home; root unless given"},
	{Name: "env", Type: Dict, Default: Absent, Named: true, Doc: "variables to add to its environment"},
	{Name: "cwd", Type: String, Default: Absent, Named: true, Doc: "the directory in which it runs; `/tmp` unless given"},
}

// The table in the order of the reference; each subject has a file.
var table = slices.Concat(commandsTable, jobsTable, unitsTable, waitsTable, filesTable, powerTable, disksTable, consolesTable, terminalTable, keyboardTable, pointerTable, screenTable, othersTable, snapshotsTable, machinesTable, portsTable, linksTable, networkTable)

// command are the options that commandParams and timeout stand for.
func (a Args) command() []attest.CommandOption {
	var opts []attest.CommandOption
	for _, o := range a.detached() {
		opts = append(opts, o)
	}
	if a.Given("stdin") {
		opts = append(opts, attest.Input(a.Bytes("stdin")))
	}
	return opts
}

// detached are those of a command that is only started: it has no stdin.
func (a Args) detached() []attest.DetachOption {
	opts := []attest.DetachOption{a.limit(), a.user()}
	for name, value := range a.Dict("env") {
		opts = append(opts, attest.Env(name, value))
	}
	if a.Given("cwd") {
		opts = append(opts, attest.Dir(a.String("cwd")))
	}
	return opts
}

// limit, user and address are the options that the arguments of these names stand
// for; nil, which is none, if they are not given.

func (a Args) limit() attest.WaitOption {
	if !a.Given("timeout") {
		return nil
	}
	return attest.Timeout(a.Duration("timeout"))
}

func (a Args) user() attest.UserOption {
	if !a.Given("user") {
		return nil
	}
	return attest.User(a.String("user"))
}

func (a Args) address() attest.PortOption {
	if !a.Given("addr") {
		return nil
	}
	return attest.Address(a.String("addr"))
}
