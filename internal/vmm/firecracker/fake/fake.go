package fake

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Options are how a fake differs from a Firecracker that works. The zero value works.
type Options struct {
	Version string // default "1.17.0"
	Program bool   // it is a program, as the real one, and not a script that starts one

	// By request, such as "PUT /snapshot/load":
	Refuse map[string]string // a fault_message with the status 400
	Status map[string]int    // another status, and a body that is not JSON
	Exit   map[string]int    // the process exits so instead of an answer
	Half   map[string]bool   // the answer ends in its middle, and with it the process

	NoSocket bool // the API's socket never appears
	// The first connections to the vsock are silent, as before the guest's driver is up,
	// the next end at once, as before its agent listens. Negative: all of them.
	Silent, Unheard int
	Ghosts          bool // silent connections reach the agent later
	Deaf            bool // the guest is not heard again when it was restored
}

const (
	argument = "fake-firecracker"
	variable = "FAKE_FIRECRACKER" // instead, for a fake without a script
)

// Main is the fake if this process was started as one, and returns otherwise.
func Main() {
	text, args := os.Getenv(variable), os.Args[1:]
	if len(os.Args) >= 3 && os.Args[1] == argument {
		text, args = os.Args[2], os.Args[3:]
	}
	if text == "" {
		return
	}
	var o Options
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(153)
	}
	os.Exit(run(o, args))
}

// T is what Install needs of a test.
type T interface {
	Helper()
	TempDir() string
	Setenv(key, value string)
	Fatal(args ...any)
}

// Install makes this test binary the Firecracker of a test, on a host that seems to
// have KVM. It returns the program.
func Install(t T, o Options) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("ATTEST_ACCEL", "kvm")
	if o.Program {
		t.Setenv(variable, string(b))
		t.Setenv("ATTEST_FIRECRACKER", self)
		return self
	}
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
	path := filepath.Join(t.TempDir(), "firecracker")
	script := fmt.Sprintf("#!/bin/sh\nGORACE=atexit_sleep_ms=0 exec %s %s %s \"$@\"\n", quote(self), argument, quote(string(b)))
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ATTEST_FIRECRACKER", path)
	return path
}

// version is the fake's: three numbers and possibly a suffix.
func (o Options) version() string {
	if o.Version == "" {
		return "1.17.0"
	}
	return o.Version
}

// since reports whether the fake is a Firecracker of 1.minor or newer.
func (o Options) since(minor int) bool {
	var major, has int
	fmt.Sscanf(o.version(), "%d.%d", &major, &has)
	return has >= minor
}

// run is the process.
func run(o Options, args []string) int {
	flags := flag.NewFlagSet("firecracker", flag.ContinueOnError)
	flags.SetOutput(os.Stderr)
	version := flags.Bool("version", false, "")
	api := flags.String("api-sock", "", "")
	log := flags.String("log-path", "", "")
	level := flags.String("level", "Info", "")
	flags.String("id", "", "")
	pci := false
	if o.since(13) {
		flags.BoolVar(&pci, "enable-pci", false, "")
	}
	if err := flags.Parse(args); err != nil || flags.NArg() > 0 {
		return 153
	}
	if *version {
		fmt.Printf("Firecracker v%s\n\nSupported snapshot format versions: v9.0.0\n", o.version())
		return 0
	}
	m := &machine{Options: o, pci: pci, state: "Not started"}
	out := os.Stdout // mixed with the console, unless asked not to
	if *log != "" {
		f, err := os.OpenFile(*log, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		out = f
	}
	if *level == "Info" {
		fmt.Fprintln(out, "Running Firecracker v"+m.version())
	}
	return m.serve(*api)
}
