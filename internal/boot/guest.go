package boot

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/attest-vm/attest/internal/wire"
)

// Serials by which /init knows the virtio-blk disks (at most 20 bytes). Their
// order on the bus does not matter.
const (
	SerialModules  = "attest-mod"  // read-only image that holds [usr/]lib/modules/<release>
	SerialWritable = "attest-rw"   // ext4; holds what the guest writes, made by the host
	SerialImage    = "attest-root" // RootImage: one file system, mounted read-only below the overlay
	SerialDisk     = "attest-disk" // RootDisk: a partitioned disk, its root mounted read-write; RootPlain: one file system
)

// SerialLayer is the serial of layer i of RootLayers; layer 0 is the lowest.
func SerialLayer(i int) string { return "attest-l" + strconv.Itoa(i) }

// FatalPrefix begins the console line with the reason why a guest could not boot.
// The guest powers itself off after it.
const FatalPrefix = "attest-init: FATAL: "

// FilledPrefix begins the console line with which a guest that was to fill a file
// system (Guest.Fill) says that it has; the word follows, and how many files.
const FilledPrefix = "attest-init: FILLED: "

// Names by which the attest binary knows what it is (argv[0]).
const (
	InitArg0  = "/init"        // as PID 1: call Init
	AgentArg0 = wire.AgentArg0 // started by Init, descriptor 3 is the write end of its pipe
)

// Root is where the guest's root file system comes from.
type Root string

const (
	RootLayers Root = "layers" // attest's own images: disks SerialLayer(0…n-1) below SerialWritable
	RootImage  Root = "image"  // a file system image: disk SerialImage below SerialWritable
	RootDisk   Root = "disk"   // a disk with partitions: disk SerialDisk, written to directly
	RootPlain  Root = "plain"  // one file system that Fill has filled: disk SerialDisk, written to directly
)

// maxLayers is what fits the kernel's 4 KiB of mount options with room to spare.
const maxLayers = 32

// Guest is what /init has to know of the machine; it travels in the kernel's
// arguments. The zero value has no root and is refused.
type Guest struct {
	Root    Root
	Layers  int  // RootLayers: how many, 1 to 32
	Modules bool // there is a SerialModules disk
	// Volatile keeps what the guest writes in its memory: there is no
	// SerialWritable disk, and a reset loses all.
	Volatile bool
	// Fill is for a guest that starts nothing: it copies its root (RootLayers,
	// RootImage) into the empty file system on a disk SerialDisk, says so on the
	// console with this word, and powers itself off.
	Fill string
	// Init is the guest's init as a path in its root. Empty: the first that
	// exists of the usual ones; where there is none, /init stays as a small init.
	// "none": /init stays.
	Init string
	// Verbose shows all kernel messages on the console, not only warnings.
	Verbose bool
	// Vsock says that the host comes by vsock, and not by a virtio serial port; Disks are
	// the serials of the disks vda, vdb and so on, for a VMM that gives them others. The
	// backends of such VMMs add both to the command line (package wire).
	Vsock bool
	Disks []string
	// Args are further kernel arguments, or several of them in one string, as the
	// kernel reads them. They come last, so they win over ours.
	Args []string
}

// Check says what is wrong with g.
func (g Guest) Check() error {
	switch {
	case !slices.Contains([]Root{RootLayers, RootImage, RootDisk, RootPlain}, g.Root):
		return fmt.Errorf("boot: unknown kind of root %q (want %s, %s, %s or %s)", g.Root, RootLayers, RootImage, RootDisk, RootPlain)
	case g.Root == RootLayers && (g.Layers < 1 || g.Layers > maxLayers):
		return fmt.Errorf("boot: a root of %d layers (want 1 to %d)", g.Layers, maxLayers)
	case g.Fill != "" && g.direct():
		return fmt.Errorf("boot: a root of kind %s is not copied to another", g.Root)
	case strings.Trim(g.Fill, wordLetters) != "":
		return fmt.Errorf("boot: fill %q is not a word of letters and digits", g.Fill)
	case g.direct() && g.Volatile:
		return errors.New("boot: a disk root is written to directly and cannot be volatile")
	case g.Init != "" && g.Init != "none" && !strings.HasPrefix(g.Init, "/"):
		return fmt.Errorf("boot: init %q is not an absolute path", g.Init)
	}
	if strings.ContainsAny(g.Init, "\"\n") {
		return fmt.Errorf("boot: init %q has a quote or a newline, which a kernel argument cannot have", g.Init)
	}
	return CheckArguments(g.Args)
}

// CheckArguments says what is wrong with arguments for a kernel.
func CheckArguments(args []string) error {
	for _, arg := range args {
		if strings.Contains(arg, "\n") || strings.Count(arg, `"`)%2 != 0 {
			return fmt.Errorf("boot: kernel argument %q has a newline or a quote that is not closed", arg)
		}
	}
	return nil
}

const wordLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

// direct reports whether the guest writes to the disk that its root is on.
func (g Guest) direct() bool { return g.Root == RootDisk || g.Root == RootPlain }

// Serials are the disks that /init waits for.
func (g Guest) Serials() []string {
	var s []string
	switch g.Root {
	case RootLayers:
		for i := range g.Layers {
			s = append(s, SerialLayer(i))
		}
	case RootImage:
		s = append(s, SerialImage)
	case RootDisk, RootPlain:
		s = append(s, SerialDisk)
	}
	if g.Fill != "" {
		return append(s, SerialDisk)
	}
	if g.Modules {
		s = append(s, SerialModules)
	}
	if !g.direct() && !g.Volatile {
		s = append(s, SerialWritable)
	}
	return s
}

// kernelArgs are for every guest. The measurements behind them are in
// docs/architecture.md.
var kernelArgs = []string{
	"panic=-1",          // a panic resets at once; the VMM then ends, or starts again
	"oops=panic",        // what a kernel does after an oops proves nothing
	"unknown_nmi_panic", // an NMI means that the host wants a panic: nothing else here sends one
	"net.ifnames=0",     // eth0, eth1, … in the order of the NICs

	// What costs time and protects nobody here. Under TCG the first saves 0.3 s,
	// and the rest a tenth of all that runs later.
	"cryptomgr.notests", // self tests of ciphers
	"mitigations=off",   // guests keep no secrets
	"init_on_alloc=0",   // Debian zeroes every page twice
	"audit=0",           // journald turns it on, and every system call is slower
}

// systemdArgs are read by systemd. SYSTEMD_COLORS is not known to the kernel, so
// it becomes a variable in the environment of PID 1: the lines on the console
// are plain text, which a test can wait for.
var systemdArgs = []string{
	"systemd.show_status=1",
	"SYSTEMD_COLORS=0",
	"systemd.gpt_auto=0", // no root or swap to discover on our disks
}

// Cmdline is the kernel's command line for g, without console= arguments:
// those belong to the backend, which knows its console.
func (g Guest) Cmdline() (string, error) {
	if err := g.Check(); err != nil {
		return "", err
	}
	args := append([]string(nil), kernelArgs...)
	if g.Verbose {
		args = append(args, "loglevel=7")
	} else {
		args = append(args, "loglevel=5") // warnings and worse: printing the rest costs 0.4 s
	}
	args = append(args, systemdArgs...)

	root := string(g.Root)
	if g.Root == RootLayers {
		root += ":" + strconv.Itoa(g.Layers)
	}
	args = append(args, "attest.root="+root)
	if g.Modules {
		args = append(args, "attest.modules=1")
	}
	if g.Volatile {
		args = append(args, "attest.volatile=1")
	}
	if g.Fill != "" {
		args = append(args, "attest.fill="+g.Fill)
	}
	if g.Init != "" {
		args = append(args, `"attest.init=`+g.Init+`"`)
	}
	return strings.Join(append(args, g.Args...), " "), nil
}

// parseCmdline reads what Cmdline wrote. Arguments that are not ours are left
// to their owners; of one that comes twice the last counts, as in the kernel.
func parseCmdline(line string) (Guest, error) {
	var g Guest
	for _, arg := range splitArgs(line) {
		if arg == wire.VsockArgument {
			g.Vsock = true
		}
		key, value, _ := strings.Cut(arg, "=")
		switch key {
		case wire.DisksArgument:
			g.Disks = strings.Split(value, ",")
		case "attest.root":
			kind, n, layered := strings.Cut(value, ":")
			g.Root, g.Layers = Root(kind), 0
			if layered {
				layers, err := strconv.Atoi(n)
				if err != nil {
					return Guest{}, fmt.Errorf("kernel argument %s: %q is not a number of layers", arg, n)
				}
				g.Layers = layers
			}
		case "attest.modules":
			g.Modules = value == "1"
		case "attest.volatile":
			g.Volatile = value == "1"
		case "attest.fill":
			g.Fill = value
		case "attest.init":
			g.Init = value
		}
	}
	if g.Root == "" {
		return Guest{}, errors.New("no kernel argument attest.root")
	}
	return g, g.Check()
}

// splitArgs splits a kernel command line as the kernel does: at white space
// outside of double quotes, which are dropped.
func splitArgs(line string) []string {
	var args []string
	var arg strings.Builder
	quoted, any := false, false
	flush := func() {
		if any {
			args = append(args, arg.String())
		}
		arg.Reset()
		any = false
	}
	for _, r := range line {
		switch {
		case r == '"':
			quoted, any = !quoted, true
		case !quoted && (r == ' ' || r == '\t' || r == '\n'):
			flush()
		default:
			arg.WriteRune(r)
			any = true
		}
	}
	flush()
	return args
}
