package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/attest-vm/attest/internal/accel"
	"github.com/attest-vm/attest/internal/doctor"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/image"
	"github.com/attest-vm/attest/internal/screen/ocr"
	"github.com/attest-vm/attest/internal/supervise"
	"github.com/attest-vm/attest/internal/tap"
	"github.com/attest-vm/attest/internal/vmm"
)

func newDoctor() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this host can do, what is missing, and how to get it",
		Long: "doctor looks at this host: how machines are accelerated, which backends can\n" +
			"run, what it takes to build images. It exits with 3 when tests cannot run here.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := doctor.Examine(cmd.Context(), thisHost())
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				if err := enc.Encode(c); err != nil {
					return err
				}
			} else {
				c.Write(cmd.OutOrStdout())
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

// thisHost is what attest doctor looks at.
func thisHost() doctor.Host {
	h := doctor.Host{
		Version: version(),
		Checks: []doctor.Check{
			{Look: hostFinding}, {Look: accel.Examine}, {Look: stateFinding, Needed: true}, {Look: tapFinding}, {Look: ocrFinding},
		},
		Images:   image.Examine,
		Backends: map[string]doctor.Backend{},
	}
	for _, name := range vmm.Names() {
		b, _ := vmm.Lookup(name)
		examine := func(context.Context) doctor.Diagnosis { return doctor.Diagnosis{Usable: true} }
		if d, ok := b.(vmm.Doctor); ok {
			examine = d.Examine
		}
		h.Backends[name] = doctor.Backend{Examine: examine, Pretends: vmm.Pretends(b)}
	}
	return h
}

func hostFinding(context.Context) doctor.Finding {
	return doctor.Finding{Name: "host", OK: true, Detail: fmt.Sprintf("%s/%s, %d CPUs", runtime.GOOS, runtime.GOARCH, runtime.NumCPU())}
}

func stateFinding(context.Context) doctor.Finding {
	f := doctor.Finding{Name: "state directory"}
	root, err := supervise.StateRoot()
	if err != nil {
		f.Detail, f.Remedy = err.Error(), "set ATTEST_STATE_DIR to a short path of your own"
		return f
	}
	f.OK, f.Detail = true, root
	return f
}

// ocrFinding looks for the program that reads text on screens. Only tests that do so need it.
func ocrFinding(context.Context) doctor.Finding {
	path, err := exec.LookPath(ocr.Program)
	if err != nil {
		return doctor.Finding{Name: "OCR", Detail: ocr.Program + ": not found (only tests that read text on screens need it)", Remedy: "apt-get install " + ocr.Package}
	}
	return doctor.Finding{Name: "OCR", OK: true, Detail: path}
}

// tapFinding tries whether programs of this host can be on a lab's networks, and
// VMMs that take nothing but a TAP. No test needs that to run.
func tapFinding(ctx context.Context) doctor.Finding {
	f := doctor.Finding{Name: "TAP ports", OK: true, Detail: "a TAP in a network namespace can be made"}
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
