package attest

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// Systemctl runs systemctl with these arguments, of the system or, with User,
// of a user's service manager. That it fails is not an error.
func (m *Machine) Systemctl(ctx context.Context, args string, opts ...UnitOption) (Result, error) {
	var result Result
	err := step(ctx, m.Name(), "systemctl", strconv.Quote(args), func(ctx context.Context) (err error) {
		result, err = m.systemctl(ctx, "systemctl", args, opts)
		return err
	})
	return result, err
}

// systemctl runs systemctl on behalf of an operation. args are words of a shell.
func (m *Machine) systemctl(ctx context.Context, operation, args string, opts []UnitOption) (Result, error) {
	o := collect(opts)
	o.timeout, o.hasTimeout = o.limit(m.lab.host, defaultTimeout), true
	command := "systemctl " + args
	if o.user != "" {
		command = "XDG_RUNTIME_DIR=/run/user/$(id -u) systemctl --user " + args
	}
	return m.command(ctx, operation, command, o)
}

// shellQuote makes s one word of a shell.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// StartJob starts a unit and waits until systemctl has ended, which is when the
// unit runs or has failed to. That it fails is not an error.
func (m *Machine) StartJob(ctx context.Context, unit string, opts ...UnitOption) (Result, error) {
	return m.job(ctx, "start", unit, opts)
}

// StopJob is StartJob for stopping a unit.
func (m *Machine) StopJob(ctx context.Context, unit string, opts ...UnitOption) (Result, error) {
	return m.job(ctx, "stop", unit, opts)
}

func (m *Machine) job(ctx context.Context, verb, unit string, opts []UnitOption) (Result, error) {
	var result Result
	err := step(ctx, m.Name(), verb+"_job", strconv.Quote(unit), func(ctx context.Context) (err error) {
		result, err = m.systemctl(ctx, verb+"_job", verb+" "+shellQuote(unit), opts)
		return err
	})
	return result, err
}

// UnitInfo is every property of a unit that systemctl show says, by name.
func (m *Machine) UnitInfo(ctx context.Context, unit string, opts ...UnitOption) (map[string]string, error) {
	info := map[string]string{}
	err := step(ctx, m.Name(), "get_unit_info", strconv.Quote(unit), func(ctx context.Context) error {
		text, err := m.showUnit(ctx, "get_unit_info", unit, "", opts)
		key := ""
		for line := range strings.Lines(text) {
			line = strings.TrimSuffix(line, "\n")
			if k, v, ok := strings.Cut(line, "="); ok && propertyName(k) {
				key = k
				info[key] = v
			} else if key != "" { // a value of several lines
				info[key] += "\n" + line
			}
		}
		return err
	})
	return info, err
}

// propertyName reports whether s can be the name of a property.
func propertyName(s string) bool {
	return s != "" && s[0] >= 'A' && s[0] <= 'Z' && !strings.ContainsAny(s, " \t")
}

// UnitProperty is one property of a unit, such as "ActiveState", as systemctl
// show says it.
func (m *Machine) UnitProperty(ctx context.Context, unit, property string, opts ...UnitOption) (string, error) {
	var value string
	args := strconv.Quote(unit) + ", " + strconv.Quote(property)
	err := step(ctx, m.Name(), "get_unit_property", args, func(ctx context.Context) (err error) {
		value, err = m.unitProperty(ctx, "get_unit_property", unit, property, opts)
		return err
	})
	return value, err
}

func (m *Machine) unitProperty(ctx context.Context, operation, unit, property string, opts []UnitOption) (string, error) {
	text, err := m.showUnit(ctx, operation, unit, property, opts)
	if err != nil {
		return "", err
	}
	value, ok := strings.CutPrefix(strings.TrimSuffix(text, "\n"), property+"=")
	if !ok {
		return "", &UnitError{Machine: m.Name(), Operation: operation, Unit: unit, User: collect(opts).user,
			Reason: fmt.Sprintf("unit %[2]q has no property %[1]q (systemctl show lists them; names are case-sensitive)", property, unit)}
	}
	return value, nil
}

// showUnit is what systemctl show says of a unit, or of one property.
func (m *Machine) showUnit(ctx context.Context, operation, unit, property string, opts []UnitOption) (string, error) {
	args, what := "--no-pager show "+shellQuote(unit), "info"
	if property != "" {
		args += " --property=" + shellQuote(property)
		what = fmt.Sprintf("property %q", property)
	}
	result, err := m.systemctl(ctx, operation, args, opts)
	if err != nil || result.ExitCode == 0 {
		return result.Stdout, err
	}
	user := collect(opts).user
	under := ""
	if user != "" {
		under = fmt.Sprintf(" under user %q", user)
	}
	return "", &UnitError{Machine: m.Name(), Operation: operation, Unit: unit, User: user,
		Reason: fmt.Sprintf("retrieving systemctl %s for unit %q%s failed with exit code %d%s", what, unit, under, result.ExitCode, lastLine(result.Stderr))}
}

// RequireUnitState looks once whether a unit is in a state, "active" as a rule.
func (m *Machine) RequireUnitState(ctx context.Context, unit, state string, opts ...UnitOption) error {
	args := strconv.Quote(unit) + ", " + strconv.Quote(state)
	return step(ctx, m.Name(), "require_unit_state", args, func(ctx context.Context) error {
		got, err := m.unitProperty(ctx, "require_unit_state", unit, "ActiveState", opts)
		if err != nil || got == state {
			return err
		}
		e := &UnitError{Machine: m.Name(), Operation: "require_unit_state", Unit: unit, User: collect(opts).user,
			Reason: fmt.Sprintf("expected unit %q to be in state %q but it is in state %q", unit, state, got)}
		if r := m.running(); r != nil {
			e.Details = r.unitJournal(unit, e.User)
		}
		return e
	})
}

// Journal is what the journal has of a unit, or of everything if unit is empty:
// all, or with Lines the last lines, or with Since what is newer. With User it
// is a unit of that user's service manager.
func (m *Machine) Journal(ctx context.Context, unit string, opts ...JournalOption) (string, error) {
	o := collect(opts)
	command := "journalctl --no-pager --quiet"
	args := written(ctx, unless("", unit, ""), unless("lines", max(o.lines, 0), 0), unless("since", o.since, ""))
	if unit != "" {
		flag := " --unit="
		if o.user != "" {
			flag = " --user-unit="
		}
		command += flag + shellQuote(unit)
	}
	if o.lines > 0 {
		command += fmt.Sprintf(" --lines=%d", o.lines)
	}
	if o.since != "" {
		command += " --since=" + shellQuote(o.since)
	}
	o.user = "" // root reads everybody's journal
	var text string
	err := step(ctx, m.Name(), "journal", args, func(ctx context.Context) error {
		o.timeout, o.hasTimeout = o.limit(m.lab.host, defaultTimeout), true
		result, err := m.command(ctx, "journal", command, o)
		if err == nil && result.ExitCode != 0 {
			err = &CommandError{Machine: m.Name(), Operation: "journal", Command: command, Result: result}
		}
		text = result.Stdout
		return err
	})
	return text, err
}
