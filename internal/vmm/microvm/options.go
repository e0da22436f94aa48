package microvm

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/vmm"
)

// An OptionsError is options of a backend (vmm.Hardware.Options) that make no sense.
type OptionsError struct {
	Machine, Backend string
	Err              error
}

func (e *OptionsError) Error() string {
	return fmt.Sprintf("machine %q: options of backend %s: %v", e.Machine, e.Backend, e.Err)
}

func (e *OptionsError) Unwrap() error { return e.Err }

// Status is Invalid.
func (*OptionsError) Status() event.Status { return event.Invalid }

// ParseOptions reads options, of which none may be unknown. guest is part of them.
func ParseOptions(text json.RawMessage, options any, guest *GuestOptions) error {
	if len(text) == 0 {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(options); err != nil {
		return err
	}
	return guest.check()
}

// Unsupported is what a backend does not have.
func Unsupported(backend string, c vmm.Config, operation, reason string) error {
	return &vmm.UnsupportedError{Machine: c.Name, Operation: operation, Backend: backend, Reason: reason}
}

// Look refuses what no small VMM has, has parse read the options of the backend, and returns
// the machine.
func Look(backend string, c vmm.Config, maxCPUs int, parse func(json.RawMessage) error) (*vmm.Hardware, error) {
	hw, ok := c.Boot.(*vmm.Hardware)
	if !ok {
		if _, ok := c.Boot.(*vmm.Command); ok {
			return nil, Unsupported(backend, c, "a start command", "attest starts it itself")
		}
		return nil, Unsupported(backend, c, fmt.Sprintf("a machine of a %T", c.Boot), "")
	}
	if err := parse(hw.Options); err != nil {
		return nil, &OptionsError{c.Name, backend, err}
	}
	if operation, reason := refuse(hw, maxCPUs); operation != "" {
		return nil, Unsupported(backend, c, operation, reason)
	}
	return hw, nil
}
