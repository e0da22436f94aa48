package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/attest-vm/attest/internal/wire"
)

// systemdSocket is there when systemd's manager can be talked to.
const systemdSocket = "/run/systemd/private"

// initState knows whether the guest's init has taken over. The agent starts
// before it: a command that ran at once could find a systemctl without a systemd,
// and a signal that asks for a shutdown would be lost.
type initState struct{ up atomic.Bool }

// initPause is between two looks whether attest's /init has become the guest's. An emulated guest
// that looks every few milliseconds does little else.
const initPause = 20 * time.Millisecond

// await waits until process 1 is the guest's init, and until that can be talked
// to if it is systemd. That is some hundred milliseconds; it is not the end of
// the guest's boot.
func (i *initState) await(ctx context.Context) error {
	if i.up.Load() {
		return nil
	}
	for !initIsUp() {
		if systemdIsInit() && watch(ctx, systemdSocket, func() (bool, error) { return initIsUp(), nil }) == nil {
			break
		}
		select {
		case <-time.After(initPause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	i.up.Store(true)
	return nil
}

func initIsUp() bool {
	comm, err := os.ReadFile("/proc/1/comm")
	if err != nil {
		return true // no /proc: nothing to be known
	}
	if strings.TrimSpace(string(comm)) == wire.StayingInit {
		return true
	}
	// Opened once: whoever looks twice may see attest's /init at first and its
	// successor then.
	first, err := os.Open("/proc/1/exe")
	if err != nil {
		return !errors.Is(err, os.ErrNotExist) // process 1 is between two programs
	}
	defer first.Close()
	if program, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", first.Fd())); err == nil && filepath.Base(program) == "systemd" {
		_, err := os.Stat(systemdSocket)
		return err == nil
	}
	own, err := os.Stat("/proc/self/exe")
	if err != nil {
		return true
	}
	running, err := first.Stat()
	return err != nil || !os.SameFile(own, running) // attest's /init has become another program
}

// systemdIsInit reports whether process 1 is systemd, whatever name it was started by.
func systemdIsInit() bool {
	program, err := os.Readlink("/proc/1/exe")
	return err == nil && filepath.Base(program) == "systemd"
}

// initIsEnding reports whether process 1 is ending all others: what dies then dies
// of the shutdown. The last program that systemd becomes is systemd-shutdown.
func initIsEnding() bool {
	if program, err := os.Readlink("/proc/1/exe"); err == nil && filepath.Base(program) == "systemd-shutdown" {
		return true
	}
	comm, err := os.ReadFile("/proc/1/comm")
	return err == nil && strings.TrimSpace(string(comm)) == wire.EndingInit
}
