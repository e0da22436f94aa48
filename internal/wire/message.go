package wire

import (
	"net/netip"
	"strings"
	"time"
)

// Version is of the protocol; both sides must have the same.
const Version = 3

// The names of the operations, with their request and result types.
const (
	OpExec       = "exec"        // ExecRequest, ExecResult
	OpJobs       = "jobs"        // nothing, JobsResult
	OpAdopt      = "adopt"       // AdoptRequest, ExecResult: go on with a job of an earlier session
	OpUntil      = "until"       // UntilRequest, UntilResult
	OpTerminal   = "terminal"    // TerminalRequest, ExecResult: a login shell for a person
	OpWarm       = "warm"        // nothing, nothing: have a shell ready
	OpWaitUnit   = "wait-unit"   // UnitRequest, UnitState
	OpWaitFile   = "wait-file"   // FileRequest, Observation
	OpWaitPort   = "wait-port"   // PortRequest, Observation
	OpWaitSocket = "wait-socket" // SocketRequest, Observation
	OpWaitTTY    = "wait-tty"    // TTYRequest, TTYState
	OpWaitX      = "wait-x"      // WindowRequest, WindowState
	OpPicture    = "picture"     // PictureRequest, a PPM or PNG file on Stdout and PictureResult
	OpPutTar     = "put-tar"     // CopyRequest and a tar stream on Stdin, CopyResult
	OpGetTar     = "get-tar"     // CopyRequest, a tar stream on Stdout and CopyResult
	OpLay        = "lay"         // LayRequest and a tar stream on Stdin, LayResult
	OpConnect    = "connect"     // ConnectRequest, bytes both ways on Stdin and Stdout, nothing
	OpIdentity   = "identity"    // Identity, nothing
	OpClock      = "clock"       // ClockRequest, ClockResult
	OpSettle     = "settle"      // SettleRequest, nothing: sync(2), and wait until the guest has nothing to do
	OpEcho       = "echo"        // nothing, nothing
	OpLook       = "look"        // nothing, LookResult: what may keep others from their end
	OpPower      = "power"       // PowerRequest, nothing
	OpSuspend    = "suspend"     // nothing, nothing: the answer may come when the guest is awake again
)

// HelloMessage begins a session, or asks to go on with it.
type HelloMessage struct {
	Session string `json:"session"` // random
	Version int    `json:"version"`
	Try     uint32 `json:"try"` // counts the host's Hellos; of two connections the later one counts
}

// WelcomeMessage answers a Hello.
type WelcomeMessage struct {
	Session  string `json:"session"`        // the Hello's
	Try      uint32 `json:"try"`            // the Hello's
	Over     bool   `json:"over,omitempty"` // there was this session, and the agent has ended it
	Received uint32 `json:"received"`       // how many frames of the session the agent has
	Info
}

// StartMessage makes the connection on which it comes the one that carries the
// session of the Hello before.
type StartMessage struct {
	Received uint32 `json:"received"` // how many frames of the session the host has
}

// AnnounceMessage asks the host for a Hello: an agent has started, or has got out
// of step with what the host sends.
type AnnounceMessage struct {
	Instance string `json:"instance"`
	BootID   string `json:"boot_id"` // that of an agent before says whether the guest was restarted or only the agent
}

// Info identifies the agent that answers.
type Info struct {
	Version  int           `json:"version"`
	Build    string        `json:"build,omitempty"` // of the agent's binary
	Instance string        `json:"instance"`        // random: another one is another process
	BootID   string        `json:"boot_id"`         // of the guest's kernel
	Kernel   string        `json:"kernel"`          // its release
	Hostname string        `json:"hostname"`
	Uptime   time.Duration `json:"uptime"` // of the guest, ns
}

// Reply is the payload of Result: the result of the operation, or an error.
type Reply struct {
	Result any    `json:"result,omitempty"`
	Error  *Error `json:"error,omitempty"`
}

// Error is what the agent says when an operation failed.
type Error struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Message }

// Kinds of Error.
const (
	KindInvalid  = "invalid"  // the request makes no sense
	KindNotFound = "notfound" // no such file, user or program
	KindFailed   = "failed"   // it did not work
	KindTimeout  = "timeout"  // a wait for one look has seen nothing
	KindCanceled = "canceled"
	KindUnit     = "unit" // the unit cannot become active; the reply has its state too
	KindLost     = "lost" // the command ran, and its exit status is unknown
	KindDown     = "down" // the guest is shutting down and has ended the command
	// KindExhausted: the system of the agent has no descriptors or memory left. Of a mock
	// machine, that is the host.
	KindExhausted = "exhausted"
)

// ExecRequest runs a command. Exactly one of a script (the body of Open, or
// the channel Script when Long is set) and Argv is given.
type ExecRequest struct {
	Argv    []string          `json:"argv,omitempty"`
	Long    bool              `json:"long,omitempty"`
	Stdin   bool              `json:"stdin,omitempty"` // the channel Stdin is used
	User    string            `json:"user,omitempty"`
	Env     map[string]string `json:"env,omitempty"`
	Dir     string            `json:"dir,omitempty"`
	Timeout time.Duration     `json:"timeout,omitempty"` // ns; 0: none
	Detach  bool              `json:"detach,omitempty"`
	// Job, if not empty, is the name of a command that goes on when its session ends,
	// because another host takes over. What it writes then is kept, 256 KiB of
	// each stream, until it is adopted. A name is used once.
	Job string `json:"job,omitempty"`
}

// Job is a command that outlives sessions.
type Job struct {
	ID    string `json:"id"`
	Pid   int    `json:"pid,omitempty"` // of its process group
	Ended bool   `json:"ended,omitempty"`
	// Which byte of each stream is the first that an adoption can give, counted from 0.
	Stdout int64 `json:"stdout"`
	Stderr int64 `json:"stderr"`
}

// JobsResult is all jobs that run, and the last that have ended, oldest first.
type JobsResult struct {
	Jobs []Job `json:"jobs,omitempty"`
}

// AdoptRequest goes on with a job: its output, signals, and its result.
type AdoptRequest struct {
	Job string `json:"job"`
	// How many bytes of each stream the host has already.
	Stdout int64 `json:"stdout"`
	Stderr int64 `json:"stderr"`
}

// ExecResult is how a command ended.
type ExecResult struct {
	ExitCode int           `json:"exit_code"`
	Signal   string        `json:"signal,omitempty"`
	Duration time.Duration `json:"duration"` // ns, measured in the guest
	TimedOut bool          `json:"timed_out,omitempty"`
	Warm     bool          `json:"warm,omitempty"` // ran on the warm shell
	Pid      int           `json:"pid,omitempty"`  // of a detached command
	// Held are the processes that kept standard output open when the command had ended by
	// itself, and its time was over or it was given up.
	Held []Process `json:"held,omitempty"`
}

// Process is one of the guest.
type Process struct {
	Pid  int    `json:"pid"`
	Name string `json:"name"` // an Excerpt of its command line
}

const maxExcerpt = 200

// Excerpt is the beginning of a command, by which it can be told from others.
func Excerpt(command string) string {
	if len(command) > maxExcerpt {
		command = command[:maxExcerpt]
	}
	return strings.ToValidUTF8(command, "\uFFFD")
}

// LookResult is what in the guest may keep operations from their end.
type LookResult struct {
	Memory  Memory    `json:"memory"`
	Units   []Trouble `json:"units,omitempty"`
	Unknown string    `json:"unknown,omitempty"` // why there may be more such units
	Held    []Held    `json:"held,omitempty"`
}

// Memory is that of the guest, in KiB.
type Memory struct {
	Total     int64   `json:"total"`
	Available int64   `json:"available"`
	Stalled   float64 `json:"stalled,omitempty"` // percent of the last 10 s in which all processes waited for memory
	Killed    int64   `json:"killed,omitempty"`  // processes that the kernel has killed for want of memory since it started
}

// Trouble is a unit of systemd that has failed, or was restarted because it ended.
type Trouble struct {
	Unit        string `json:"unit"`
	ActiveState string `json:"active_state"`
	SubState    string `json:"sub_state"`
	Result      string `json:"result,omitempty"`
	Status      int32  `json:"status,omitempty"`   // of its last process
	Restarts    uint32 `json:"restarts,omitempty"` // that nobody asked for
}

// Held is a command that has ended, and processes that still have its standard output.
type Held struct {
	Command string    `json:"command"` // an Excerpt
	By      []Process `json:"by"`
}

// TerminalRequest runs a login shell on a pseudo-terminal of this size. What is
// typed goes to Stdin; Stdout is what the terminal shows. The channel Resize
// carries a TerminalSize, big-endian, for each change of the size.
type TerminalRequest struct {
	TerminalSize
	Type string `json:"type,omitempty"` // $TERM
	User string `json:"user,omitempty"`
}

// TerminalSize is in cells.
type TerminalSize struct {
	Rows    uint16 `json:"rows"`
	Columns uint16 `json:"columns"`
}

// UntilRequest repeats a command until it succeeds, or fails, or the deadline
// passes; each attempt restarts Stdout and Stderr.
type UntilRequest struct {
	Exec     ExecRequest   `json:"exec"`
	Fail     bool          `json:"fail,omitempty"` // until it fails
	Once     bool          `json:"once,omitempty"` // one attempt
	Deadline time.Duration `json:"deadline"`       // from now, ns
	MinPause time.Duration `json:"min_pause"`      // after the first attempt; doubles
	MaxPause time.Duration `json:"max_pause"`
}

// UntilResult is the last attempt.
type UntilResult struct {
	ExecResult
	Tries int  `json:"tries"`
	Met   bool `json:"met"`             // it ended as wanted
	Ended *int `json:"ended,omitempty"` // exit code of the last that ended by itself
}

// UnitRequest waits until a systemd unit is active.
type UnitRequest struct {
	Unit string `json:"unit"`
	User string `json:"user,omitempty"` // of this user's manager
	Once bool   `json:"once,omitempty"` // one look
}

// UnitState is the state of a unit as systemd names it.
type UnitState struct {
	ActiveState string `json:"active_state,omitempty"`
	SubState    string `json:"sub_state,omitempty"`
	Result      string `json:"result,omitempty"`
	LoadState   string `json:"load_state,omitempty"`
	Reason      string `json:"reason,omitempty"` // why it cannot become active
}

// Observation is what a wait has seen last; it comes with an error, too.
type Observation struct {
	Seen  string `json:"seen,omitempty"`
	Tries int    `json:"tries,omitempty"` // looks; 0 where nothing is tried
}

// FileRequest waits until a path exists.
type FileRequest struct {
	Path string `json:"path"`
	Once bool   `json:"once,omitempty"`
}

// PortRequest waits until a TCP port accepts connections, or none any more.
type PortRequest struct {
	Host   string `json:"host"`
	Port   int    `json:"port"`
	Closed bool   `json:"closed,omitempty"`
	Once   bool   `json:"once,omitempty"`
	Unit   string `json:"unit,omitempty"` // of the service behind it: when it has failed, the wait has
}

// SocketRequest waits until a unix socket accepts connections.
type SocketRequest struct {
	Path     string `json:"path"`
	Datagram bool   `json:"datagram,omitempty"`
	Once     bool   `json:"once,omitempty"`
}

// TTYRequest waits until a virtual terminal shows something.
type TTYRequest struct {
	TTY     int    `json:"tty"`     // 1 to 63
	Pattern string `json:"pattern"` // Go's syntax; empty: whatever it shows now
}

// TTYState is what a terminal shows.
type TTYState struct {
	Text    string `json:"text"`              // whole lines, each as long as the terminal is wide
	Missing bool   `json:"missing,omitempty"` // nobody has used it yet
}

// WindowRequest waits until an X server or a Wayland compositor answers, and has a window.
type WindowRequest struct {
	Display string `json:"display,omitempty"` // ":1", or "wayland-1"; empty: ":0"
	Pattern string `json:"pattern,omitempty"` // of a window's title; empty: only the server
	Once    bool   `json:"once,omitempty"`    // look once and do not wait
}

// WindowState is what the X server has.
type WindowState struct {
	Windows []string `json:"windows,omitempty"` // the titles of all windows that have one
	Seen    string   `json:"seen,omitempty"`    // why there is no answer yet
	Tries   int      `json:"tries"`
}

// PictureRequest asks for a picture of what the guest shows.
type PictureRequest struct {
	Method  string `json:"method,omitempty"`  // a Show…; empty: what is there
	Display string `json:"display,omitempty"` // ":1", "wayland-1", "fb1"; empty: the first
}

// The ways to a picture of what a guest shows.
const (
	ShowFramebuffer = "fb"
	ShowX11         = "x11"
	ShowWayland     = "wayland"
)

// PictureResult is where the picture comes from.
type PictureResult struct {
	Method string `json:"method"`
}

// CopyRequest names the file or directory in the guest.
type CopyRequest struct {
	Path []byte `json:"path"` // not a string: JSON has only UTF-8, and a name any bytes
}

// CopyResult is what was copied.
type CopyResult struct {
	Files   int      `json:"files"`
	Bytes   int64    `json:"bytes"`
	Skipped []string `json:"skipped,omitempty"` // devices, sockets, …: at most a hundred
}

// LayRequest makes a file or a tree of the guest what it is on the host. First what is
// gone is removed, and then the stream brings what is new. It is done before the
// guest's init starts, if the agent has it by then.
type LayRequest struct {
	Path []byte `json:"path"`           // of the file or the tree in the guest
	Tree bool   `json:"tree,omitempty"` // a directory: a link to one at Path is followed
	// Paths below Path, "." for itself.
	Clear   [][]byte `json:"clear,omitempty"`   // removed with all that is in it
	Remove  [][]byte `json:"remove,omitempty"`  // removed, a directory only if it is empty
	Modes   []Mode   `json:"modes,omitempty"`   // of directories that are there
	Touched [][]byte `json:"touched,omitempty"` // what is to be told of: see LayResult.Used
}

// Mode is the permissions of a file.
type Mode struct {
	Path []byte `json:"path"`
	Bits uint32 `json:"bits"`
}

// LayResult is what has come of a LayRequest.
type LayResult struct {
	CopyResult
	// Used are those of Touched that somebody has read, changed or removed since an
	// earlier request brought them.
	Used [][]byte `json:"used,omitempty"`
	// Blind says that this file system does not tell who reads what the stream brought.
	Blind bool `json:"blind,omitempty"`
}

// ConnectRequest connects to a TCP port of the guest itself.
type ConnectRequest struct {
	Port int `json:"port"`
}

// PowerRequest ends or restarts the guest.
type PowerRequest struct {
	Reboot bool `json:"reboot,omitempty"`
	Panic  bool `json:"panic,omitempty"` // make the kernel panic, by SysRq
}

// Identity is a guest's identity. Zero fields leave things as they are.
type Identity struct {
	Hostname   string      `json:"hostname,omitempty"`
	MachineID  string      `json:"machine_id,omitempty"` // 32 hexadecimal digits
	Hosts      []Host      `json:"hosts,omitempty"`      // all machines of the lab
	Interfaces []Interface `json:"interfaces,omitempty"`
	// Nameservers take the place of those in /etc/resolv.conf.
	Nameservers []netip.Addr `json:"nameservers,omitempty"`
	Time        time.Time    `json:"time,omitzero"`
	Entropy     []byte       `json:"entropy,omitempty"` // from the host's random source; 64 bytes are plenty
}

// Host is a line of /etc/hosts per address.
type Host struct {
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`
}

// SettleRequest says how long to wait at most until the guest has nothing to do.
type SettleRequest struct {
	Limit time.Duration `json:"limit"` // ns
}

// ClockRequest moves the guest's clock and asks for it.
type ClockRequest struct {
	Step time.Duration `json:"step,omitempty"` // ns; forward if positive
}

// ClockResult is what the guest's clock said then.
type ClockResult struct {
	Time time.Time `json:"time"`
}

// Interface is a network card, found by its MAC address.
type Interface struct {
	MAC       string         `json:"mac"`            // "52:54:00:12:01:01"
	Was       string         `json:"was,omitempty"`  // the one it has if the guest was restored from another machine's snapshot
	Name      string         `json:"name,omitempty"` // what it shall be called
	Addresses []netip.Prefix `json:"addresses"`
	Gateways  []netip.Addr   `json:"gateways,omitempty"` // of the default routes, one for each family
}
