package main

import (
	"math"
	"slices"
	"time"
)

// Stats sums up samples, in seconds.
type Stats struct {
	Median float64 `json:"median_s"`
	P95    float64 `json:"p95_s"`
	Min    float64 `json:"min_s"`
	Max    float64 `json:"max_s"`
	N      int     `json:"n"`
}

// summarize returns nil if there are no samples.
func summarize(samples []time.Duration) *Stats {
	if len(samples) == 0 {
		return nil
	}
	s := make([]float64, len(samples))
	for i, d := range samples {
		s[i] = d.Seconds()
	}
	slices.Sort(s)
	n := len(s)
	return &Stats{
		Median: (s[(n-1)/2] + s[n/2]) / 2,
		P95:    s[int(math.Ceil(0.95*float64(n)))-1], // the nearest rank
		Min:    s[0], Max: s[n-1], N: n,
	}
}

// scale is for a measurement of a part, when the whole takes factor times as long.
func scale(samples []time.Duration, factor float64) []time.Duration {
	scaled := make([]time.Duration, len(samples))
	for i, d := range samples {
		scaled[i] = time.Duration(float64(d) * factor)
	}
	return scaled
}

// A Target is what DESIGN.md demands of attest's median. A zero field demands
// nothing.
type Target struct {
	Max   float64 `json:"max_s,omitempty"`     // seconds
	Ratio float64 `json:"min_ratio,omitempty"` // reference ÷ attest
}

// A Row is one thing measured.
type Row struct {
	What      string  `json:"what"`
	Reference *Stats  `json:"reference,omitempty"`
	Attest    *Stats  `json:"attest,omitempty"`
	Ratio     float64 `json:"ratio,omitempty"` // of the medians, reference ÷ attest
	Target    Target  `json:"target,omitzero"`
	Met       *bool   `json:"met,omitempty"` // nil: there is no target
	Note      string  `json:"note,omitempty"`

	// Of rows that count what is read wrong, instead of the times.
	ReferenceRate *Rate `json:"reference_rate,omitempty"`
	AttestRate    *Rate `json:"attest_rate,omitempty"`
}

// A Rate is how many characters are read wrong on some screens.
type Rate struct {
	Wrong   int `json:"wrong"`
	All     int `json:"all"`
	Screens int `json:"screens"`
}

// share is the part that is wrong.
func (r *Rate) share() float64 { return float64(r.Wrong) / float64(max(r.All, 1)) }

// rateRow compares how much is read wrong. There is no ratio to nothing.
func rateRow(what string, reference, attest *Rate) Row {
	r := Row{What: what, ReferenceRate: reference, AttestRate: attest}
	if attest.Wrong > 0 {
		r.Ratio = reference.share() / attest.share()
	}
	return r
}

func newRow(what string, reference, attest []time.Duration, target Target) Row {
	r := Row{What: what, Reference: summarize(reference), Attest: summarize(attest), Target: target}
	if r.Attest == nil {
		return r
	}
	if r.Reference != nil {
		r.Ratio = r.Reference.Median / r.Attest.Median
	}
	if target != (Target{}) {
		met := (target.Max == 0 || r.Attest.Median <= target.Max) && r.Ratio >= target.Ratio
		r.Met = &met
	}
	return r
}
