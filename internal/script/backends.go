package script

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/vmm"
)

// What a file says of backends is read from its text, as it is loaded for each of them.
var (
	backendsSet  = regexp.MustCompile(`(?m)^backends[ \t]*=[^=]`)
	backendsList = regexp.MustCompile(`^backends[ \t]*=[ \t]*\[((?:\s*(?:"[\w-]+"|'[\w-]+')\s*,)*\s*(?:"[\w-]+"|'[\w-]+')?\s*)\][ \t]*(?:#.*)?(?:\n|$)`)
	backendsName = regexp.MustCompile(`[\w-]+`)
)

// Backends are those on which a file has its tests run: backends = ["qemu", "mock"] at its
// top level. Nil: it does not say. language is that of files whose ending is no language's.
func Backends(path, language string) ([]string, error) {
	l, err := of(path, language)
	if err != nil {
		return nil, nil // which Load says better
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, nil // as well
	}
	at := backendsSet.FindIndex(text)
	if at == nil || l.Foreign != nil && l.Foreign(text) {
		return nil, nil
	}
	list := backendsList.FindSubmatch(text[at[0]:])
	var names []string
	if list != nil {
		names = backendsName.FindAllString(string(list[1]), -1)
	}
	if err := CheckBackends("backends", names); err != nil {
		line := bytes.Count(text[:at[0]], []byte("\n"))
		return nil, &LoadError{Path: path, Errors: []*Error{{
			Position: event.Position{File: path, Line: line + 1, Column: 1}, Source: strings.Split(string(text), "\n")[line], Err: err,
		}}}
	}
	return names, nil
}

// CheckBackends refuses a list of backends that makes no sense. what is where it is given.
func CheckBackends(what string, names []string) error {
	invalid := func(format string, args ...any) error {
		return &attest.ConfigError{Subject: what, Reason: fmt.Sprintf(format, args...)}
	}
	if len(names) == 0 {
		return invalid(`want the names of backends as a list that is written out, such as ["qemu", "firecracker"]`)
	}
	seen := map[string]bool{}
	for _, name := range names {
		if seen[name] {
			return invalid("%q is there twice", name)
		}
		seen[name] = true
		if known := vmm.Names(); name != "auto" && !slices.Contains(known, name) {
			return invalid("unknown backend %q; this attest has %s", name, strings.Join(known, ", "))
		}
	}
	return nil
}
