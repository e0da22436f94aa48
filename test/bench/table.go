package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"
)

// Results are one run, as they are written as JSON.
type Results struct {
	Time    time.Time `json:"time"`
	Seconds float64   `json:"seconds"` // how long the run took
	Host    Host      `json:"host"`
	Guest   Guest     `json:"guest"`
	Rows    []Row     `json:"rows"`
}

var header = []string{"what", "reference", "attest", "ratio", "target", "met"}

func (r Row) cells() []string {
	what := r.What
	if r.Note != "" {
		what += " (" + r.Note + ")"
	}
	ratio, met := "–", "–"
	if r.Ratio > 0 {
		ratio = formatRatio(r.Ratio)
	}
	if r.Met != nil {
		met = map[bool]string{true: "yes", false: "**no**"}[*r.Met]
	}
	if r.AttestRate != nil {
		return []string{what, r.ReferenceRate.String(), r.AttestRate.String(), ratio, r.Target.String(), met}
	}
	return []string{what, r.Reference.String(), r.Attest.String(), ratio, r.Target.String(), met}
}

func (s *Stats) String() string {
	switch {
	case s == nil:
		return "–"
	case s.N < 5: // a percentile of so few says nothing
		return fmt.Sprintf("%s (n %d)", formatSeconds(s.Median), s.N)
	}
	return fmt.Sprintf("%s (p95 %s, n %d)", formatSeconds(s.Median), formatSeconds(s.P95), s.N)
}

func (r *Rate) String() string {
	return fmt.Sprintf("%.1f %% (%d screens)", 100*r.share(), r.Screens)
}

func (t Target) String() string {
	var parts []string
	if t.Max > 0 {
		parts = append(parts, "≤ "+trimSeconds(t.Max))
	}
	if t.Ratio > 0 {
		parts = append(parts, "≥ "+formatRatio(t.Ratio))
	}
	if len(parts) == 0 {
		return "–"
	}
	return strings.Join(parts, ", ")
}

// formatSeconds shows three digits, or what is left of them.
func formatSeconds(s float64) string {
	ms := s * 1000
	switch {
	case ms < 0.995 && ms > -0.995:
		return fmt.Sprintf("%.0f µs", ms*1000)
	case ms < 99.5:
		return fmt.Sprintf("%.1f ms", ms)
	case ms < 999.5:
		return fmt.Sprintf("%.0f ms", ms)
	case s < 99.5:
		return fmt.Sprintf("%.2f s", s)
	}
	return fmt.Sprintf("%.0f s", s)
}

// trimSeconds is for targets, which are round numbers.
func trimSeconds(s float64) string {
	if s < 0.5 {
		return fmt.Sprintf("%g ms", s*1000)
	}
	return fmt.Sprintf("%g s", s)
}

func formatRatio(r float64) string {
	if r < 10 && r != float64(int(r)) {
		return fmt.Sprintf("%.1f×", r)
	}
	return fmt.Sprintf("%.0f×", r)
}

// text is the table for a terminal.
func (r Results) text() string {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, strings.Join(header, "\t"))
	for _, row := range r.Rows {
		fmt.Fprintln(w, strings.ReplaceAll(strings.Join(row.cells(), "\t"), "**", ""))
	}
	w.Flush()
	return b.String() + "\n" + r.circumstances()
}

// markdown is the same for a page.
func (r Results) markdown() string {
	var b strings.Builder
	line := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	line(header)
	b.WriteString("|" + strings.Repeat("---|", len(header)) + "\n")
	for _, row := range r.Rows {
		line(row.cells())
	}
	return b.String() + "\n" + r.circumstances()
}

// circumstances are what the numbers hold for.
func (r Results) circumstances() string {
	guest := ""
	if r.Guest != (Guest{}) {
		guest = fmt.Sprintf(" Guest: %s.", r.Guest)
	}
	return fmt.Sprintf("%s, %d CPUs, %s.%s %s, in %.0f s; load %s before, %s after.\n",
		r.Host.CPU, r.Host.CPUs, r.Host.VMM, guest, r.Time.Format("2 January 2006"), r.Seconds, r.Host.LoadBefore, r.Host.LoadAfter)
}

// The lines of a page between which the table goes.
const (
	tableBegin = "<!-- table: written by make bench -->"
	tableEnd   = "<!-- end of table -->"
)

// replaceTable puts a table into a page.
func replaceTable(page, table string) (string, error) {
	before, rest, begun := strings.Cut(page, tableBegin+"\n")
	_, after, ended := strings.Cut(rest, tableEnd+"\n")
	if !begun || !ended {
		return "", fmt.Errorf("it has no lines %q and %q", tableBegin, tableEnd)
	}
	return before + tableBegin + "\n\n" + table + "\n" + tableEnd + "\n" + after, nil
}

// write prints the table, and writes the files that were asked for.
func (r Results) write(o options) error {
	_, err := io.WriteString(os.Stdout, "\n"+r.text())
	if o.json != "" {
		err = errors.Join(err, r.writeJSON(o.json))
	}
	if o.markdown != "" {
		err = errors.Join(err, r.writeMarkdown(o.markdown))
	}
	return err
}

func (r Results) writeJSON(path string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

func (r Results) writeMarkdown(path string) error {
	page, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	changed, err := replaceTable(string(page), r.markdown())
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(path, []byte(changed), 0o644)
}
