// Package vmm is the contract between attest and what runs a virtual machine.
//
// A backend gives a machine power, devices and a byte stream to its guest. What
// not every VMM can do is a further small interface (PowerButton, Rebooter, …)
// that callers find by As. Backends live in the packages below this
// one and know nothing of labs, tests or agents.
package vmm

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/attest-vm/attest/internal/doctor"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/supervise"
)

// Config is one machine as plain data. A backend refuses what it cannot give
// (Check) before anything is started.
type Config struct {
	Name string // for errors and process titles
	Dir  string // the machine's own directory; exists, mode 0700, removed by the owner
	Boot Boot   // what starts as the machine
	NICs []NIC

	AllowReboot bool   // a guest that resets goes on; otherwise a reset ends the VMM
	Restore     *State // go on from here instead of booting; needs a Snapshotter
	Paused      bool   // the vCPUs stand still until Resume; needs a Pauser
}

// Boot is what starts as a machine: *Hardware, *Command or *Mock. A backend refuses those
// that it does not know.
type Boot interface{ boot() }

// Hardware is a machine that attest lays out itself.
type Hardware struct {
	Type   string // backend specific; QEMU: "q35" (default), "microvm"
	Memory int    // MiB; 0: the backend's own default
	CPUs   int    // 0: 1
	NUMA   int    // nodes, on which memory and CPUs are in equal parts; 0: none

	Kernel  string // path of a bzImage or an uncompressed vmlinux; empty: the firmware boots the first disk
	Vmlinux string // the same kernel as an uncompressed ELF file; empty: there is none
	Initrd  string
	Cmdline string // the backend puts its own console= argument in front

	// UEFI is the firmware of a machine that boots a disk; nil: the backend's BIOS.
	UEFI *UEFI
	// Bare says that the guest brings no agent of attest's: the VM is a Backdoor.
	Bare bool

	Disks   []Disk // in the order in which the guest numbers them
	Display bool   // a screen, as a VGA adapter has one

	// Options are what only this backend has: a JSON object, which it decodes strictly.
	Options json.RawMessage

	Slots     int        // for disks that come and go; a VM with any is a SlotOwner
	SlotDisks []SlotDisk // those that are there at the start
}

// UEFI is a firmware in two files: its code, which nobody writes to, and its variables,
// which belong to one machine.
type UEFI struct{ Code, Vars string }

// A UEFIBackend is a Backend whose machines can have a *UEFI.
type UEFIBackend interface {
	Backend
	// UEFI is the firmware of this host, with the variables that a new machine's are a
	// copy of. Its error is a *doctor.MissingError.
	UEFI() (UEFI, error)
}

// Command is somebody else's command that starts the VMM. It runs in Config.Dir,
// where its disks are too. Of the NICs only who they are counts: their cables are
// its own affair. The VM is a Backdoor.
type Command struct {
	Line string   // of shell, to which the backend appends its own arguments
	Env  []string // added to the environment
}

// Mock is a machine without hardware, and so without an image. Only a Mocker has
// such machines, and it has no others.
type Mock struct {
	Memory int             // MiB of what is saved of it; nothing needs it
	Script json.RawMessage // canned answers; empty or "{}": commands are executed
}

// MachineName is the name of a machine that has none of its own: NAME where the
// line ends in run-NAME-vm, as NixOS calls the script that starts a machine;
// otherwise empty.
func (c *Command) MachineName() string {
	if found := scriptName.FindStringSubmatch(c.Line); found != nil {
		return found[1]
	}
	return ""
}

var scriptName = regexp.MustCompile(`run-([^/\s]+)-vm$`)

func (*Hardware) boot() {}
func (*Command) boot()  {}
func (*Mock) boot()     {}

// State is a machine at one moment, but for its disks. Any number of machines
// can go on from it at the same time: nothing that they do changes it.
type State struct {
	Memory *os.File // the guest's memory, with holes where it is zero; belongs to whoever has the State
	Device []byte   // everything else, in the backend's own format
}

// Disk is one block device. Base images are read-only and shared; what a
// machine writes goes to a file of its own.
type Disk struct {
	Serial   string // at most 20 bytes; the guest finds the disk by it (/sys/block/*/serial)
	Path     string
	Format   string // "raw" or "qcow2"
	ReadOnly bool
	// Backing are the files that a qcow2 image reads from where nobody has
	// written to it: the next below it first. They are never written to. What the
	// images name themselves is not opened.
	Backing []Backing
}

// Backing is a file below a disk image.
type Backing struct {
	Path   string `json:"path"`
	Format string `json:"format"` // "raw" or "qcow2"
}

// NIC is one network card.
type NIC struct {
	ID  string // "net1"; unique in the machine
	MAC net.HardwareAddr
	// Model is backend specific; QEMU: "virtio" (default), "e1000", "e1000e", "rtl8139",
	// "vmxnet3".
	Model string
	Link  Link // nil: the card has no cable
}

// Link is the lab's end of a network card's cable. During Start a backend asks it
// once for the form of connection that its VMM can take; faults, captures and the
// way out of the lab are the same on each.
type Link interface {
	// Stream is one end of a connection on which each Ethernet frame comes after
	// its length as 4 bytes, big-endian (QEMU's -netdev stream). The backend
	// closes it, and the cable is unplugged when the VMM has no copy of it either.
	Stream() (*net.UnixConn, error)
	// Packets is Stream with a message for each frame (SOCK_SEQPACKET, QEMU's
	// -netdev dgram).
	Packets() (*net.UnixConn, error)
	// TAP plugs the cable into a TAP that the backend has made: each read of the
	// non-blocking descriptor is a frame, without packet information or offloads
	// (IFF_NO_PI). The file belongs to the link from here on, also on error. The
	// cable is unplugged when the VM is gone, and when another TAP is handed in: that of
	// a VMM that was started again for the same VM.
	TAP(*os.File) error
}

// Host is what a backend needs of the side that starts it.
type Host struct {
	Supervisor *supervise.Supervisor // every process is started through it
	Accel      string                // "kvm" or "tcg": the result of the probe, or what the user forced
	Packets    bool                  // ask for Link.Packets where there is a choice
}

// A Backend makes machines of one kind.
type Backend interface {
	Name() string
	// Check returns an *UnsupportedError if this backend cannot run the
	// configuration, or a *doctor.MissingError if the host lacks what it needs. It
	// starts nothing.
	Check(Config) error
	// Start starts the VMM and the guest in it, and returns as soon as the VMM
	// runs. On error nothing is left.
	Start(context.Context, Host, Config) (VM, error)
}

// RawOnly is a Backend whose VMM reads raw disks only: what a machine has written is
// copied for each that goes on from it, where another VMM puts an overlay on it.
type RawOnly interface {
	Backend
	RawOnly()
}

// Pretends reports whether a backend has mock machines, and no others.
func Pretends(b Backend) bool {
	_, ok := b.(Mocker)
	return ok
}

// A Mocker is a Backend of a *Mock.
type Mocker interface {
	Backend
	Mocks()
}

// VM is one running machine. Methods can be called from any goroutine.
type VM interface {
	// Console is the serial console from the first byte on. It ends with
	// io.EOF when the VMM is gone. It has one reader, which closes it.
	Console() io.ReadCloser
	// Dial opens the byte stream to the agent in the guest. At most one is open
	// at a time: closing it leaves the transport itself as it is, and a later
	// Dial goes on where the stream was.
	Dial(context.Context) (net.Conn, error)
	// Done is closed when the VMM has exited; Exit says how.
	Done() <-chan struct{}
	Exit() Exit
	// Kill ends the VMM at once and waits until it is gone: power loss. Data
	// that the guest had synced is on the disks.
	Kill() error
}

// A Reconnecter is a VM each of whose Dials makes a connection of its own. It may be cut at
// any time, and one on which nobody answers is worth another Dial.
type Reconnecter interface{ Reconnects() }

// Exit is why a VMM ended.
type Exit struct {
	Reason ExitReason
	Detail string // the exit status, and the end of the VMM's own messages
}

// ExitReason is what ended a VMM.
type ExitReason string

const (
	Running    ExitReason = ""
	PoweredOff ExitReason = "powered off" // by the guest
	Reset      ExitReason = "reset"       // by the guest, and AllowReboot was false
	Panicked   ExitReason = "panicked"    // the guest's kernel, where the VMM can tell
	Killed     ExitReason = "killed"      // by Kill, or by somebody's signal
	Quit       ExitReason = "quit"        // asked to, over its own control channel
	Broken     ExitReason = "failed"      // the VMM itself gave up; Detail says why
)

// PowerButton asks the guest to shut down (ACPI). The guest may ignore it.
type PowerButton interface{ PressPower(context.Context) error }

// CtrlAltDel presses these keys. A guest that listens to them ends in an orderly way, and resets.
// It is for a VMM that has neither a power button nor a keyboard.
type CtrlAltDel interface{ PressCtrlAltDel(context.Context) error }

// Rebooter resets the machine (hard, like the reset button), and can make later resets, its own
// and the guest's, restart the machine instead of ending the VMM.
type Rebooter interface {
	Reset(context.Context) error
	AllowReboot(ctx context.Context, allow bool) error
}

// Pauser stops and continues all vCPUs.
type Pauser interface {
	Pause(context.Context) error
	Resume(context.Context) error
}

// Snapshotter is a VM whose state can be saved. Between Pause and Resume the
// files of its disks belong to the state: the caller copies them then.
type Snapshotter interface {
	Pauser
	// Save writes the memory of a machine that is paused to an empty file, with
	// holes where it is zero, and returns the rest of its State. The machine stays
	// as it is and can go on afterwards.
	Save(ctx context.Context, memory *os.File) (device []byte, err error)
}

// A MemoryMaker is a Snapshotter that those who go on from it in this process possibly
// share a memory with in a file of its own kind only.
type MemoryMaker interface {
	// MemoryFile is such a file, for Save. They get it read-only. nil: a file of any kind will
	// do.
	MemoryFile(context.Context) (*os.File, error)
}

// Backdoor is a VM whose guest has no agent of attest's, and offers a root
// shell: that of a *Command, or of a *Hardware that is bare.
type Backdoor interface {
	// Shell is the console of that shell (the guest's /dev/hvc0), and upload a
	// stream into the guest, where it is the virtio serial port wire.UploadPort. Both
	// end with the VMM and belong to the first caller.
	Backdoor() (shell, upload net.Conn)
}

// DefaultMemory is the memory of a machine whose configuration gives none, in MiB.
const DefaultMemory = 1024

// Doubtful is a Snapshotter that possibly cannot save its state. Then both methods
// return an *UnsupportedError with the reason.
type Doubtful interface {
	CanSave(context.Context) error // now
	WillSave() error               // once its guest has booted, as far as that can be known
}

// Fingerprinter is a Backend whose VMs are Snapshotters.
type Fingerprinter interface {
	// Fingerprint names what must be the same for a State to be restored: the
	// VMM and its version, the host's processor as far as the guest sees it, and
	// what the VMM makes of the configuration. Paths and addresses are not in it.
	Fingerprint(Host, Config) (string, error)
}

// Observer is a VM that knows whether its guest can do anything.
type Observer interface {
	// State is empty while the guest runs, and otherwise what it is instead, such as
	// Suspended.
	State(context.Context) (string, error)
}

// Suspended is the State of a machine whose guest sleeps.
const Suspended = "suspended"

// Crasher ends the VMM in an orderly way, without telling the guest (QEMU's
// "quit"). Caches of disk images reach their files.
type Crasher interface{ Crash(context.Context) error }

// LinkSetter pulls the cable of a NIC, or plugs it in.
type LinkSetter interface {
	SetLink(ctx context.Context, nic string, up bool) error
}

// Monitor gives the VMM's own control languages: that for people (QEMU: HMP), and that for
// programs (QMP), whose results are JSON.
type Monitor interface {
	MonitorCommand(ctx context.Context, line string) (string, error)
	Ask(ctx context.Context, command string, arguments map[string]any) (json.RawMessage, error)
}

// Doctor says what a backend can do on this host, for attest doctor.
type Doctor interface {
	Examine(context.Context) doctor.Diagnosis
}

// UnsupportedError is an operation or a setting that a backend does not have.
type UnsupportedError struct {
	Machine   string // may be empty
	Operation string // "screenshot", "machine type microvm"
	Backend   string
	Can       []string // the backends that can
	Reason    string   // why not, if there is more to say
}

func (e *UnsupportedError) Error() string {
	msg := fmt.Sprintf("%s is not supported by backend %s", e.Operation, e.Backend)
	if e.Machine != "" {
		msg = e.Machine + ": " + msg
	}
	if e.Reason != "" {
		msg += ": " + e.Reason
	}
	if len(e.Can) > 0 {
		msg += fmt.Sprintf(" (backends that can: %s)", strings.Join(e.Can, ", "))
	}
	return msg
}

// Status is Unsupported.
func (*UnsupportedError) Status() event.Status { return event.Unsupported }

// StartError is a VMM that did not start. Output is the end of its output.
type StartError struct {
	Machine, Backend string
	After            time.Duration
	Output           string
	Err              error
}

func (e *StartError) Error() string {
	msg := fmt.Sprintf("%s: %s did not start (after %v): %v", e.Machine, e.Backend, e.After.Round(time.Millisecond), e.Err)
	if e.Output != "" {
		msg += "\n" + e.Output
	}
	return msg
}

func (e *StartError) Unwrap() error { return e.Err }

// Status is Infra.
func (*StartError) Status() event.Status { return event.Infra }

var (
	registryMu sync.Mutex
	registry   = map[string]Backend{}
)

// Register makes a backend known by its name. Backends call it in init.
func Register(b Backend) {
	registryMu.Lock()
	defer registryMu.Unlock()
	registry[b.Name()] = b
}

// Unregister takes that back, for tests that have backends of their own.
func Unregister(name string) {
	registryMu.Lock()
	defer registryMu.Unlock()
	delete(registry, name)
}

// Lookup finds a registered backend.
func Lookup(name string) (Backend, bool) {
	registryMu.Lock()
	defer registryMu.Unlock()
	b, ok := registry[name]
	return b, ok
}

// Names lists the registered backends in alphabetical order.
func Names() []string {
	registryMu.Lock()
	defer registryMu.Unlock()
	return slices.Sorted(maps.Keys(registry))
}
