package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/attest-vm/attest/internal/vmm"
)

var (
	_ vmm.Offerer       = (*backend)(nil)
	_ vmm.Keyboarder    = (*machine)(nil)
	_ vmm.Screener      = (*machine)(nil)
	_ vmm.Pointer       = (*machine)(nil)
	_ vmm.ConsoleWriter = (*machine)(nil)
	_ vmm.Interrupter   = (*machine)(nil)
	_ vmm.EventSource   = (*machine)(nil)
	_ vmm.Waker         = (*machine)(nil)
)

// Offers says what the machine types have.
func (b *backend) Offers(c vmm.Config, what vmm.Capability) (bool, vmm.Lack) {
	pc, display := vmm.Setting{Name: "type", Value: "q35"}, vmm.Setting{Name: "display", Value: true}
	hw, ok := c.Boot.(*vmm.Hardware)
	switch {
	case !ok && what == vmm.CanPlug:
		return false, vmm.Lack{Reason: "its start command lays out its disks"}
	case what == vmm.CanPlug && hw.Type == "microvm":
		return false, vmm.Lack{Reason: "the machine type microvm has no slots to plug disks into", Give: []vmm.Setting{pc}}
	case !ok:
		return true, vmm.Lack{} // nobody knows what a start command starts before it runs
	case what == vmm.CanType && hw.Type == "microvm":
		return false, vmm.Lack{Reason: "the machine type microvm has no keyboard", Give: []vmm.Setting{pc}}
	case what == vmm.CanWake && hw.Type == "microvm":
		return false, vmm.Lack{Reason: "the machine type microvm has no keyboard, whose key wakes others", Give: []vmm.Setting{pc}}
	case what == vmm.CanShow && hw.Type == "microvm":
		return false, vmm.Lack{Reason: "the machine type microvm has no screen", Give: []vmm.Setting{pc, display}}
	case what == vmm.CanPoint && hw.Type == "microvm":
		return false, vmm.Lack{Reason: "the machine type microvm has no pointer", Give: []vmm.Setting{pc, display}}
	case what == vmm.CanPoint && !hw.Display:
		return false, vmm.Lack{Reason: "a machine without a screen has no pointer", Give: []vmm.Setting{display}}
	case what == vmm.CanShow && !hw.Display:
		return false, vmm.Lack{Reason: "the machine has no screen", Give: []vmm.Setting{display}}
	}
	return true, vmm.Lack{}
}

// Keys are input events, not send-key: that one queues releases on a timer of
// QEMU's own, and drops what its queue has no room for.
func (m *machine) Keys(ctx context.Context, keys []string, down bool) error {
	events := make([]any, len(keys))
	for i, key := range keys {
		value := map[string]any{"type": "qcode", "data": key}
		if code, hex := strings.CutPrefix(strings.ToLower(key), "0x"); hex {
			n, err := strconv.ParseUint(code, 16, 15)
			if err != nil {
				return fmt.Errorf("%s: scan code %s: %w", m.name, key, err)
			}
			value = map[string]any{"type": "number", "data": n}
		}
		events[i] = map[string]any{"type": "key", "data": map[string]any{"down": down, "key": value}}
	}
	return m.do(ctx, "input-send-event", map[string]any{"events": events})
}

func (m *machine) Screenshot(ctx context.Context, path string, format vmm.PictureFormat) error {
	return m.do(ctx, "screendump", map[string]any{"filename": path, "format": format})
}

// maxAxis is the value of an axis at its end (INPUT_EVENT_ABS_MAX).
const maxAxis = 0x7fff

func (m *machine) Move(ctx context.Context, x, y float64) error {
	axis := func(name string, share float64) any {
		value := int(min(max(share, 0), 1)*maxAxis + 0.5)
		return map[string]any{"type": "abs", "data": map[string]any{"axis": name, "value": value}}
	}
	return m.do(ctx, "input-send-event", map[string]any{"events": []any{axis("x", x), axis("y", y)}})
}

func (m *machine) Button(ctx context.Context, name string, down bool) error {
	event := map[string]any{"type": "btn", "data": map[string]any{"down": down, "button": name}}
	return m.do(ctx, "input-send-event", map[string]any{"events": []any{event}})
}

func (m *machine) InjectNMI(ctx context.Context) error { return m.do(ctx, "inject-nmi", nil) }

func (m *machine) Events() *vmm.EventLog { return &m.events }

var longAgo = time.Unix(1, 0) // a deadline that interrupts at once

func (m *machine) WriteConsole(ctx context.Context, p []byte) error {
	m.typing.Lock()
	defer m.typing.Unlock()
	m.console.SetWriteDeadline(time.Time{})
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		m.console.SetWriteDeadline(longAgo)
	})
	n, err := m.console.Write(p)
	if !stop() {
		<-interrupted // so that it does not hit the next one
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("the guest has taken %d of %d bytes: %w", n, len(p), context.Cause(ctx))
	}
	if err != nil {
		return fmt.Errorf("%s: write to the console: %w", m.name, err)
	}
	return nil
}
