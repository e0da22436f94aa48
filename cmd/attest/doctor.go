package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/attest-vm/attest/internal/accel"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/image"
	"github.com/attest-vm/attest/internal/supervise"
	"github.com/attest-vm/attest/internal/tap"
	"github.com/attest-vm/attest/internal/vmm"
)

// A checkup is what doctor found out.
type checkup struct {
	Version  string                   `json:"version"`
	Usable   bool                     `json:"usable"` // tests can run here
	Host     []vmm.Finding            `json:"host"`
	Images   []vmm.Finding            `json:"images"`
	Backends map[string]vmm.Diagnosis `json:"backends"`
}

func newDoctor() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this host can do, what is missing, and how to get it",
		Long: "doctor looks at this host: how machines are accelerated, which backends can\n" +
			"run, what it takes to build images. It exits with 3 when tests cannot run here.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := examine(cmd.Context())
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				if err := enc.Encode(c); err != nil {
					return err
				}
			} else {
				c.print(cmd.OutOrStdout())
			}
			if !c.Usable {
				return exitCode(event.Infra.ExitCode())
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	return cmd
}

func examine(ctx context.Context) checkup {
	c := checkup{Version: version(), Backends: map[string]vmm.Diagnosis{}}
	c.Host = append(c.Host, vmm.Finding{Name: "host", OK: true, Detail: fmt.Sprintf("%s/%s, %d CPUs", runtime.GOOS, runtime.GOARCH, runtime.NumCPU())})
	state := stateFinding()
	c.Host = append(c.Host, accel.Examine(ctx), state, tapFinding(ctx))
	c.Images = image.Examine(ctx)
	anyBackend := false
	for _, name := range vmm.Names() {
		b, _ := vmm.Lookup(name)
		d := vmm.Diagnosis{Usable: true}
		if doctor, ok := b.(vmm.Doctor); ok {
			d = doctor.Examine(ctx)
		}
		c.Backends[name] = d
		if _, pretends := b.(vmm.Mocker); !pretends {
			anyBackend = anyBackend || d.Usable
		}
	}
	c.Usable = state.OK && anyBackend
	return c
}

func stateFinding() vmm.Finding {
	f := vmm.Finding{Name: "state directory"}
	root, err := supervise.StateRoot()
	if err != nil {
		f.Detail, f.Remedy = err.Error(), "set ATTEST_STATE_DIR to a short path of your own"
		return f
	}
	f.OK, f.Detail = true, root
	return f
}

// tapFinding tries whether programs of this host can be on a lab's networks, and
// VMMs that take nothing but a TAP. No test needs that to run.
func tapFinding(ctx context.Context) vmm.Finding {
	f := vmm.Finding{Name: "TAP ports", OK: true, Detail: "a TAP in a network namespace can be made"}
	err := tap.Try(ctx)
	var unavailable *tap.UnavailableError
	switch {
	case errors.As(err, &unavailable):
		f.OK, f.Detail, f.Remedy = false, fmt.Sprintf("%s: %v (only programs of this host on a lab's network need it)", unavailable.Step, unavailable.Err), unavailable.Remedy
	case err != nil:
		f.OK, f.Detail = false, err.Error()
	}
	return f
}

func (c checkup) print(w io.Writer) {
	fmt.Fprintf(w, "attest %s\n\n", c.Version)
	printFindings(w, c.Host)
	fmt.Fprintf(w, "\nimages\n")
	printFindings(w, c.Images)
	for _, name := range vmm.Names() {
		d := c.Backends[name]
		state := "usable"
		if !d.Usable {
			state = "not usable here"
		}
		fmt.Fprintf(w, "\nbackend %s: %s\n", name, state)
		printFindings(w, d.Findings)
	}
	if !c.Usable {
		fmt.Fprintf(w, "\nTests cannot run on this host yet; see what is marked ✗.\n")
	}
}

func printFindings(w io.Writer, findings []vmm.Finding) {
	for _, f := range findings {
		mark := "✓"
		if !f.OK {
			mark = "✗"
		}
		fmt.Fprintf(w, "  %s %-16s %s\n", mark, f.Name, f.Detail)
		if f.Remedy != "" {
			fmt.Fprintf(w, "    %-16s → %s\n", "", f.Remedy)
		}
	}
}
