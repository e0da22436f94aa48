package attest

import (
	"context"
	"fmt"
	"image"
	"slices"
	"strings"

	"github.com/attest-vm/attest/internal/vmm"
)

// mouseButtons are those of QEMU's InputButton (qapi/ui.json).
var mouseButtons = []string{"left", "middle", "right", "wheel-up", "wheel-down"}

// MouseMove moves the machine's pointer to a place on the screen, in pixels from its upper
// left corner.
func (m *Machine) MouseMove(ctx context.Context, x, y int) error {
	const operation = "mouse_move"
	return m.point(ctx, operation, fmt.Sprintf("%d, %d", x, y), func(ctx context.Context, p *pointer) error {
		return p.move(ctx, image.Pt(x, y))
	})
}

// MouseClick presses and releases a button: where the pointer is, At a place, or OnNeedle,
// for which it waits as AssertScreen does.
func (m *Machine) MouseClick(ctx context.Context, opts ...ClickOption) error {
	const operation = "mouse_click"
	o := collect(opts)
	button, err := m.button(operation, o)
	if err != nil {
		return err
	}
	if o.at != nil && o.needle != "" {
		return &ConfigError{m.Name(), operation + ": either at or needle is given, not both"}
	}
	args := fmt.Sprintf("%q", button)
	if o.needle != "" {
		args = written(ctx, argument{"", button}, argument{"needle", o.needle}, unless("tag", o.tag, ""))
	} else if o.at != nil {
		args += fmt.Sprintf(", at=[%d, %d]", o.at.X, o.at.Y)
	}
	return m.point(ctx, operation, args, func(ctx context.Context, p *pointer) error {
		at := o.at
		if o.needle != "" {
			if !o.hasTimeout {
				o.timeout, o.hasTimeout = m.lab.host.scale(assertTimeout), true
			}
			found, err := m.waitForNeedle(ctx, operation, o.needle, o)
			if err != nil {
				return err
			}
			at = &found.Click
		}
		if at != nil {
			if err := p.move(ctx, *at); err != nil {
				return err
			}
		}
		return p.pressed(ctx, button, func() error { return nil })
	})
}

// Drag presses a button at one place and releases it at another.
func (m *Machine) Drag(ctx context.Context, from, to image.Point, opts ...ButtonOption) error {
	const operation = "drag"
	button, err := m.button(operation, collect(opts))
	if err != nil {
		return err
	}
	args := written(ctx, argument{"", verbatim(fmt.Sprintf("[%d, %d]", from.X, from.Y))}, argument{"", verbatim(fmt.Sprintf("[%d, %d]", to.X, to.Y))}, unless("button", button, "left"))
	return m.point(ctx, operation, args, func(ctx context.Context, p *pointer) error {
		if err := p.move(ctx, from); err != nil {
			return err
		}
		return p.pressed(ctx, button, func() error {
			// What is dragged follows the pointer only if it sees it move.
			for i := 1; i <= dragSteps; i++ {
				if err := p.move(ctx, from.Add(to.Sub(from).Mul(i).Div(dragSteps))); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// dragSteps is in how many steps something is dragged.
const dragSteps = 10

func (m *Machine) button(operation string, o options) (string, error) {
	switch {
	case o.button == "":
		return "left", nil
	case slices.Contains(mouseButtons, o.button):
		return o.button, nil
	}
	return "", &ConfigError{m.Name(), fmt.Sprintf("%s: a mouse has no button %q, only %s", operation, o.button, strings.Join(mouseButtons, ", "))}
}

// A pointer is that of a machine that runs.
type pointer struct {
	run       *run
	operation string
	device    vmm.Pointer
}

func (m *Machine) point(ctx context.Context, operation, args string, fn func(context.Context, *pointer) error) error {
	return step(ctx, m.Name(), operation, args, func(ctx context.Context) error {
		return withVMM(ctx, m, operation, vmm.CanPoint, func(r *run, device vmm.Pointer) error {
			if err := r.unpaused(operation); err != nil {
				return err
			}
			return r.whenGone(fn(ctx, &pointer{r, operation, device}))
		})
	})
}

// move asks how large the screen is each time: a guest can change it.
func (p *pointer) move(ctx context.Context, to image.Point) error {
	s, ok := vmm.As[vmm.Screener](p.run.vm)
	if !ok {
		return &UnsupportedError{Machine: p.run.machine.Name(), Operation: p.operation, Backend: p.run.machine.config.Backend}
	}
	shown, err := p.run.look(ctx, s)
	if err != nil {
		return err
	}
	if !to.In(shown.Rect) {
		return &ConfigError{p.run.machine.Name(), fmt.Sprintf("%s: %v is outside of the screen, which has %d×%d pixels", p.operation, to, shown.Rect.Dx(), shown.Rect.Dy())}
	}
	share := func(at, size int) float64 { return float64(at) / float64(max(size-1, 1)) }
	if err := p.device.Move(ctx, share(to.X, shown.Rect.Dx()), share(to.Y, shown.Rect.Dy())); err != nil {
		return err
	}
	return p.settle(ctx)
}

// pressed holds a button down while fn runs. It does not stay down whatever happens.
func (p *pointer) pressed(ctx context.Context, button string, fn func() error) error {
	if err := p.device.Button(ctx, button, true); err != nil {
		return err
	}
	err := p.settle(ctx)
	if err == nil {
		err = fn()
	}
	if released := p.device.Button(context.WithoutCancel(ctx), button, false); err == nil {
		err = released
	}
	if err == nil {
		err = p.settle(ctx)
	}
	return err
}

// settle gives the guest time to see what the pointer did, as press does for keys.
func (p *pointer) settle(ctx context.Context) error {
	if err := pause(ctx, keyDelay); err != nil {
		return err
	}
	select {
	case <-p.run.ready:
		if p.run.readyErr == nil {
			return p.run.guest.Echo(ctx)
		}
	default: // a boot loader, or a guest without an agent
	}
	return nil
}
