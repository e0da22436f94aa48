package cloudhypervisor

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/attest-vm/attest/internal/event"
)

// options are what only cloud-hypervisor has (vmm.Hardware.Options).
type options struct {
	Binary string `json:"cloud_hypervisor_bin"` // a path, or a name on PATH; empty: see Env
}

// An OptionsError is options that make no sense.
type OptionsError struct {
	Machine string
	Err     error
}

func (e *OptionsError) Error() string {
	return fmt.Sprintf("machine %q: options of backend cloud-hypervisor: %v", e.Machine, e.Err)
}

func (e *OptionsError) Unwrap() error { return e.Err }

// Status is Invalid.
func (*OptionsError) Status() event.Status { return event.Invalid }

func parseOptions(text json.RawMessage) (o options, err error) {
	if len(text) == 0 {
		return o, nil
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	return o, d.Decode(&o)
}
