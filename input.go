package attest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/attest-vm/attest/internal/keyboard"
	"github.com/attest-vm/attest/internal/vmm"
)

// keyDelay is how long a key is held down, and how long after it the next may
// follow.
const keyDelay = 10 * time.Millisecond

// SendKey presses and releases a key, or a chord such as "ctrl-alt-delete", on
// the machine's keyboard. Keys are called as in QEMU ("ret", "spc", "f1", …), or
// are the character that they type, with the layout of Keymap. Delay is 10 ms unless given.
// The guest need not have booted.
func (m *Machine) SendKey(ctx context.Context, key string, opts ...KeyOption) error {
	o := collect(opts)
	layout, err := m.layout(o)
	var chord keyboard.Chord
	if err == nil {
		chord, err = layout.Parse(key)
	}
	if err != nil {
		return &ConfigError{m.Name(), fmt.Sprintf("send_key: %v", err)}
	}
	return m.typeKeys(ctx, "send_key", typedArgs(ctx, key, o), []keyboard.Chord{chord}, o)
}

// SendChars types a text on the machine's keyboard, with the layout of Keymap, or else
// of HostConfig, or else the US layout. If it has characters that cannot be typed, none is. Delay is 10 ms unless given.
func (m *Machine) SendChars(ctx context.Context, text string, opts ...KeyOption) error {
	o := collect(opts)
	layout, err := m.layout(o)
	var chords []keyboard.Chord
	if err == nil {
		chords, err = layout.Text(text)
	}
	if err != nil {
		return &ConfigError{m.Name(), fmt.Sprintf("send_chars: %v", err)}
	}
	return m.typeKeys(ctx, "send_chars", typedArgs(ctx, text, o), chords, o)
}

// layout is the one that the guest expects of its keyboard.
func (m *Machine) layout(o options) (*keyboard.Layout, error) {
	return keyboard.FindLayout(cmp.Or(o.keymap, m.lab.host.config.Keymap))
}

func typedArgs(ctx context.Context, what string, o options) string {
	return written(ctx, argument{"", what}, unless("hold", o.hold, 0), unless("keymap", o.keymap, ""))
}

func (m *Machine) typeKeys(ctx context.Context, operation, args string, chords []keyboard.Chord, o options) error {
	delay := keyDelay
	if o.hasDelay {
		delay = o.delay
	}
	hold := cmp.Or(o.hold, delay)
	run := func(ctx context.Context) error {
		return withVMM(ctx, m, operation, vmm.CanType, func(r *run, k vmm.Keyboarder) error {
			for _, chord := range chords {
				if err := r.unpaused(operation); err != nil {
					return err
				}
				if err := r.press(ctx, k, chord, hold, delay); err != nil {
					return r.whenGone(err)
				}
			}
			return nil
		})
	}
	if o.unlogged {
		return run(ctx)
	}
	return step(ctx, m.Name(), operation, args, run)
}

// press holds a chord down for a while. A keyboard holds some 16 bytes that the
// guest has not taken and drops the rest, and an emulated guest may not run for
// longer than that takes; so between two keys it has to answer.
func (r *run) press(ctx context.Context, k vmm.Keyboarder, chord keyboard.Chord, hold, delay time.Duration) error {
	asleep := r.sleeps() // then a key may wake it, and may not
	if err := k.Keys(ctx, chord, true); err != nil {
		return err
	}
	held := pause(ctx, hold)
	released := slices.Clone(chord)
	slices.Reverse(released)
	// Whatever happens no key stays down.
	if err := k.Keys(context.WithoutCancel(ctx), released, false); err != nil {
		return err
	}
	if held != nil {
		return held
	}
	if err := pause(ctx, delay); err != nil {
		return err
	}
	select {
	case <-r.ready:
		if r.readyErr == nil && !asleep {
			return r.guest.Echo(ctx)
		}
	default: // a boot loader, or a kernel that has just started
	}
	return nil
}

// pause waits for d, or for the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// SendConsole types on the serial console: what it writes is the input of
// whatever reads /dev/ttyS0 in the guest. The guest need not have booted.
func (m *Machine) SendConsole(ctx context.Context, text string) error {
	return step(ctx, m.Name(), "send_console", strconv.Quote(text), func(ctx context.Context) error {
		return withVMM(ctx, m, "send_console", vmm.CanListen, func(r *run, w vmm.ConsoleWriter) error {
			if err := r.unpaused("send_console"); err != nil {
				return err
			}
			return w.WriteConsole(ctx, []byte(text))
		})
	})
}
