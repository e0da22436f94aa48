package report

import (
	"slices"
	"time"

	"github.com/attest-vm/attest/internal/event"
)

// remind writes a plain line for each piece of long work that has one due.
func (t *Terminal) remind(now time.Time) {
	for _, w := range t.run.work {
		if w.Done {
			continue
		}
		t.due(w, now.Sub(w.began), func(age time.Duration, first bool) {
			l := clean(w.Title)
			if m := lastLine(w.Message); m != "" {
				l += ": " + cut(m, 120)
			}
			if !first {
				l += " (" + took(age) + ")"
			}
			t.line(now, l)
		})
	}
	for _, f := range t.run.files {
		for _, m := range f.machines {
			if !m.booting {
				continue
			}
			t.due(m, now.Sub(m.began), func(age time.Duration, first bool) {
				who := t.subject(event.Scope{File: f.name, Test: m.test.test, Boot: m.test.boot}, m.name)
				if first {
					if t.o.Level != Verbose { // which said "starting"
						t.line(now, who+m.verb)
					}
					return
				}
				l := who + "still " + m.verb + " after " + took(age)
				if c := m.console.last(); c != "" {
					l += ", console: " + cut(c, 120)
				}
				t.line(now, l)
			})
		}
		t.remindSteps(f, now)
	}
}

// remindSteps says where a file hangs: the innermost steps, less and less often.
func (t *Terminal) remindSteps(f *file, now time.Time) {
	for _, ts := range f.running() {
		for i, s := range ts.entries {
			age, next := now.Sub(s.at), t.reminder[s]
			inner := slices.ContainsFunc(ts.entries[i+1:], func(c *entry) bool { return c.Parent == s.ID })
			if next == 0 {
				next = remindEvery
			}
			if age < next || inner || f.booting(ts.testKey, s.Machine) {
				continue
			}
			t.reminder[s] = 2 * next
			l := t.subject(event.Scope{File: f.name, Test: ts.test, Boot: ts.boot}, s.Machine) + "still running: " + cut(s.label(), 120) + " (" + took(age) + ")"
			if s.waiting != "" {
				l += ": " + cut(firstLine(s.waiting), 200)
			}
			t.line(now, l)
		}
	}
}

// due calls show when work of this age has a line due.
func (t *Terminal) due(key any, age time.Duration, show func(age time.Duration, first bool)) {
	next, announced := t.reminder[key]
	if !announced {
		next = announceAfter
	}
	if age < next {
		return
	}
	t.reminder[key] = age.Truncate(remindEvery) + remindEvery
	show(age, !announced)
}

// running are the tests of a file that run, and what runs outside them.
func (f *file) running() []*test {
	var ts []*test
	for _, t := range f.tests {
		if !t.done {
			ts = append(ts, t)
		}
	}
	if f.outside != nil && len(f.outside.entries) > 0 {
		ts = append(ts, f.outside)
	}
	return ts
}

// booting reports whether this machine of the test's lab is; that lab may be the
// one of the whole file.
func (f *file) booting(k testKey, name string) bool {
	return slices.ContainsFunc(f.machines, func(m *machine) bool {
		return m.name == name && m.booting && (m.test == k || m.test == testKey{boot: k.boot})
	})
}
