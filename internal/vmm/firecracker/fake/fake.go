package fake

import (
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/attest-vm/attest/internal/vmm/microvm/fake"
)

// Options are how a fake differs from a Firecracker that works. The zero value works.
type Options struct {
	Version string // default "1.17.0"
	Program bool   // it is a program, as the real one, and not a script that starts one

	fake.Faults // a refusal is a fault_message with the status 400

	NoSocket bool // the API's socket never appears
	fake.Manners
}

const name = "firecracker"

// Main is the fake, or its jailer, if this process was started as one, and returns otherwise.
func Main() {
	fake.Main(jailerName, runJailer) // the first: it has the environment of what it starts
	fake.Main(name, run)
}

// Install makes this test binary the Firecracker of a test, on a host that seems to
// have KVM. It returns the program.
func Install(t fake.T, o Options) string {
	t.Helper()
	return fake.Install(t, name, "ATTEST_FIRECRACKER", o, o.Program)
}

// version is the fake's: three numbers and possibly a suffix.
func (o Options) version() string {
	if o.Version == "" {
		return "1.17.0"
	}
	return o.Version
}

// format is that of the states of a version: one with another minor number takes none of them.
func (o Options) format() string {
	major, rest, _ := strings.Cut(o.version(), ".")
	minor, _, _ := strings.Cut(rest, ".")
	return major + "." + minor + ".0"
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
	for _, given := range []string{"id", "start-time-us", "start-time-cpu-us", "parent-cpu-time-us"} { // by the jailer
		flags.String(given, "", "")
	}
	pci := false
	if o.since(13) {
		flags.BoolVar(&pci, "enable-pci", false, "")
	}
	if err := flags.Parse(args); err != nil || flags.NArg() > 0 {
		return 153
	}
	if *version {
		fmt.Printf("Firecracker v%s\n\nSupported snapshot format versions: v%s\n", o.version(), o.format())
		return 0
	}
	m := &machine{Options: o, pci: pci, state: "Not started", line: &fake.Vsock{Manners: o.Manners}}
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
