// Package doctor says what a host can do, what it lacks and how to get that.
//
// It has the words for it, which every package that looks at the host uses, and
// knows none of them: attest doctor hands it what there is to look at.
package doctor

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/attest-vm/attest/internal/event"
)

// A Finding is one thing that was looked at.
type Finding struct {
	Name   string `json:"name"` // "accelerator"
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`           // what was seen
	Remedy string `json:"remedy,omitempty"` // what to do about it, if anything
}

// A Diagnosis is a backend's state on this host.
type Diagnosis struct {
	Usable   bool      `json:"usable"`
	Version  string    `json:"version,omitempty"`
	Path     string    `json:"path,omitempty"`
	Findings []Finding `json:"findings"`
}

// A MissingError is something that the host lacks: a program, a device, space.
type MissingError struct {
	What   string // "qemu-system-x86_64"
	Reason string // "not found on PATH (/usr/bin:/bin)"
	Remedy string // "apt-get install qemu-system-x86"
}

func (e *MissingError) Error() string {
	msg := e.What + ": " + e.Reason
	if e.Remedy != "" {
		msg += "; " + e.Remedy
	}
	return msg
}

// Status is Infra.
func (*MissingError) Status() event.Status { return event.Infra }

// A Check is something of the host to look at.
type Check struct {
	Needed bool // no test runs without it
	Look   func(context.Context) Finding
}

// A Backend is one that machines can have.
type Backend struct {
	Examine  func(context.Context) Diagnosis
	Pretends bool // its machines have no VMM: that it works says nothing of the host
}

// A Host is what there is to look at.
type Host struct {
	Version  string // of attest
	Checks   []Check
	Images   func(context.Context) []Finding
	Backends map[string]Backend
}

// A Report is what was found out.
type Report struct {
	Version  string               `json:"version"`
	Usable   bool                 `json:"usable"` // tests can run here
	Host     []Finding            `json:"host"`
	Images   []Finding            `json:"images"`
	Backends map[string]Diagnosis `json:"backends"`
}

// Examine looks at all. Tests can run where everything that is needed is there, and
// a backend that does not pretend is usable.
func Examine(ctx context.Context, h Host) Report {
	r := Report{Version: h.Version, Backends: map[string]Diagnosis{}, Images: h.Images(ctx)}
	needed := true
	for _, c := range h.Checks {
		f := c.Look(ctx)
		r.Host = append(r.Host, f)
		needed = needed && (f.OK || !c.Needed)
	}
	for name, b := range h.Backends {
		d := b.Examine(ctx)
		r.Backends[name] = d
		r.Usable = r.Usable || d.Usable && !b.Pretends
	}
	r.Usable = r.Usable && needed
	return r
}

// Write writes the report for people.
func (r Report) Write(w io.Writer) {
	fmt.Fprintf(w, "attest %s\n\n", r.Version)
	writeFindings(w, r.Host)
	fmt.Fprintf(w, "\nimages\n")
	writeFindings(w, r.Images)
	for _, name := range slices.Sorted(maps.Keys(r.Backends)) {
		d := r.Backends[name]
		state := "usable"
		if !d.Usable {
			state = "not usable here"
		}
		fmt.Fprintf(w, "\nbackend %s: %s\n", name, state)
		writeFindings(w, d.Findings)
	}
	if !r.Usable {
		fmt.Fprintf(w, "\nTests cannot run on this host yet; see what is marked ✗.\n")
	}
}

func writeFindings(w io.Writer, findings []Finding) {
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
