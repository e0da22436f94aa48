// Package agent is what runs inside a guest: it executes commands, waits for
// things to happen, moves files and gives the guest its identity, as the host
// asks over one stream of bytes (package wire).
//
// It is attest's own binary, started by attest's /init before the guest's init
// system, as root, and lives until the machine is off. systemd finds it in the
// root of the control group tree and moves it to init.scope, where it stays:
// that scope is not stopped at shutdown, and what runs in it is nobody's unit.
// The first byte of its argv[0] is "@", which systemd-shutdown(8) spares when
// it kills what is left. Its OOM score is -1000, that of commands is 0.
package agent
