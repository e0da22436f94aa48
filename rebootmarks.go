package attest

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/attest-vm/attest/internal/guest"
)

// maxReboots is how often one command may ask for a reboot.
const maxReboots = 100

// layRebootTools makes the programs by which a command asks for a reboot. Each notes that
// and ends the process group of its caller, so that nothing after the call runs. The
// directory is in memory: it is empty in the next boot. The names are those of Debian's
// autopkgtest (README.package-tests, "Reboot during a test") and of tmt (its guide, "Reboot
// during test").
const layRebootTools = `
d=/run/attest-reboot; mkdir -p -m 1777 $d
for tool in /tmp/autopkgtest-reboot $d/tmt-reboot; do
	case $tool in
	/tmp/*) how='[ $# = 1 ] || { echo "usage: $0 MARK" >&2; exit 2; }; printf "mark %s" "$1"' ;;
	*) how='[ $# = 0 ] || { echo "usage: tmt-reboot" >&2; exit 2; }; printf count' ;;
	esac
	printf '#!/bin/sh\n%s > %s/asked\nkill -KILL 0\n' "$how" $d > $tool
	chmod 755 $tool
done`

// askedReboot says what a command has asked for, and forgets it.
const askedReboot = `d=/run/attest-reboot; if [ -e $d/asked ]; then cat $d/asked; rm -f $d/asked; fi`

// rebootPath has a shell find the programs.
const rebootPath = `export PATH="$PATH:/run/attest-reboot"; `

// ExecuteWithReboots runs a command as Execute does, and again after each reboot that it
// asks for, until it ends without asking. It asks by "/tmp/autopkgtest-reboot MARK", and finds
// MARK in AUTOPKGTEST_REBOOT_MARK and ADT_REBOOT_MARK in the next boot, or by "tmt-reboot". How
// often it has asked is in TMT_REBOOT_COUNT. Standard output and error are those of all boots,
// the exit code that of the last. The limit is that of all boots together; that it is over is a
// *WaitError.
func (m *Machine) ExecuteWithReboots(ctx context.Context, command string, opts ...CommandOption) (Result, error) {
	const operation = "execute_with_reboots"
	o := collect(opts)
	var all Result
	w := m.newWait(operation, strconv.Quote(command), o, defaultTimeout)
	o.timeout = 0 // the wait's own deadline limits each boot
	err := w.do(ctx, func(ctx context.Context) (*run, error) {
		mark := ""
		for reboots := 0; ; reboots++ {
			r, err := m.use(ctx, operation)
			if err != nil {
				return r, err
			}
			if _, err := r.tool(ctx, layRebootTools); err != nil {
				return r, err
			}
			each := o
			each.env = maps.Clone(o.env)
			for name, value := range map[string]string{"AUTOPKGTEST_REBOOT_MARK": mark, "ADT_REBOOT_MARK": mark, "TMT_REBOOT_COUNT": strconv.Itoa(reboots)} {
				Env(name, value).set(&each)
			}
			result, err := m.command(ctx, operation, rebootPath+command, each)
			result.Stdout, result.Stderr = all.Stdout+result.Stdout, all.Stderr+result.Stderr
			result.Duration += all.Duration
			all = result
			if err != nil {
				return r, err
			}
			asked, err := r.tool(ctx, askedReboot)
			if err != nil || asked == "" {
				return r, err
			}
			if reboots == maxReboots {
				return r, &WaitError{Reason: fmt.Sprintf("the command has asked for more than %d reboots", maxReboots)}
			}
			if text, ok := strings.CutPrefix(asked, "mark "); ok {
				mark = text
			}
			if err := r.reboot(ctx); err != nil {
				return r, err
			}
			r.rebootsAwaited()
		}
	})
	return all, err
}

// tool runs a script of attest's own, and returns its standard output.
func (r *run) tool(ctx context.Context, script string) (string, error) {
	res, err := r.guest.Run(ctx, guest.Command{Script: script})
	if err == nil && res.ExitCode != 0 {
		err = &WaitError{Reason: "the guest takes no marks of reboots: " + strings.TrimSpace(string(res.Stderr))}
	}
	return string(res.Stdout), err
}
