package attest

import (
	"bytes"
	"image"
	"io"
	"time"
)

// Each operation names the options that it takes by a type, so that an option that
// would do nothing does not compile. An option that several kinds of operations take
// has a type that is an option of each kind. A nil option is none.

// A CommandOption is an option of whatever runs a command that the test gives:
// [Timeout], [User], [Stdin], [Input], [Stdout], [Stderr], [Env] and [Dir].
type CommandOption interface {
	set(*options)
	forCommand()
}

// A DetachOption is an option of [Machine.Detach], which hears nothing of the command
// and says nothing to it: [Timeout], [User], [Env] and [Dir].
type DetachOption interface {
	CommandOption
	forDetach()
}

// A WaitOption is an option of whatever takes a while: [Timeout].
type WaitOption interface {
	DetachOption
	UnitOption
	PortOption
	SocketOption
	JournalOption
	TextOption
	NeedleOption
	XOption
	forWait()
}

// A UnitOption is an option of operations about a systemd unit: [Timeout] and [User].
type UnitOption interface {
	set(*options)
	forUnit()
}

// A PortOption is an option of waits for a port: [Timeout] and [Address].
type PortOption interface {
	OpenPortOption
	forPort()
}

// An OpenPortOption is an option of [Machine.WaitForOpenPort]: [Timeout], [Address] and
// [Unit].
type OpenPortOption interface {
	set(*options)
	forOpenPort()
}

// A SocketOption is an option of waits for a unix socket: [Timeout] and [Datagram].
type SocketOption interface {
	set(*options)
	forSocket()
}

// A JournalOption is an option of [Machine.Journal]: [Timeout], [User], [Lines] and
// [Since].
type JournalOption interface {
	set(*options)
	forJournal()
}

// A TextOption is an option of [Machine.WaitForText]: [Timeout] and [Region].
type TextOption interface {
	set(*options)
	forText()
}

// A NeedleOption is an option of waits for a needle: [Timeout] and [Tag].
type NeedleOption interface {
	ClickOption
	forNeedle()
}

// A TagOption is an option of whatever looks for a needle: [Tag].
type TagOption interface {
	NeedleOption
	forTag()
}

// An XOption is an option of waits for an X server or for windows: [Timeout] and [Display].
type XOption interface {
	set(*options)
	forX()
}

// A PictureOption is an option of [Machine.GuestScreenshot]: [Method] and [Display].
type PictureOption interface {
	set(*options)
	forPicture()
}

// A DisplayOption is an option of whatever asks an X server or a Wayland compositor: [Display].
type DisplayOption interface {
	XOption
	PictureOption
	forDisplay()
}

// A RegionOption is an option of whatever reads a screen: [Region].
type RegionOption interface {
	TextOption
	forRegion()
}

// A ShellOption is an option of [Machine.Shell]: [User].
type ShellOption interface {
	set(*options)
	forShell()
}

// A UserOption is what [User] returns.
type UserOption interface {
	DetachOption
	UnitOption
	JournalOption
	ShellOption
}

// A KeyOption is an option of what types on a keyboard: [Delay], [Hold], [Keymap] and
// [Unlogged].
type KeyOption interface {
	set(*options)
	forKey()
}

// A ClickOption is an option of [Machine.MouseClick]: [At], [OnNeedle], [Button], and
// with OnNeedle [Tag] and [Timeout].
type ClickOption interface {
	set(*options)
	forClick()
}

// A ButtonOption is an option of what presses a button of a mouse: [Button].
type ButtonOption interface {
	ClickOption
	forButton()
}

// A StartOption is an option of [Machine.Start]: [AllowReboot].
type StartOption interface {
	set(*options)
	forStart()
}

// option is each of them; the functions that make one return the right type.
type option func(*options)

func (fn option) set(o *options) { fn(o) }

func (option) forCommand()  {}
func (option) forDetach()   {}
func (option) forWait()     {}
func (option) forUnit()     {}
func (option) forPort()     {}
func (option) forSocket()   {}
func (option) forJournal()  {}
func (option) forShell()    {}
func (option) forKey()      {}
func (option) forStart()    {}
func (option) forText()     {}
func (option) forX()        {}
func (option) forDisplay()  {}
func (option) forPicture()  {}
func (option) forNeedle()   {}
func (option) forTag()      {}
func (option) forRegion()   {}
func (option) forOpenPort() {}
func (option) forClick()    {}
func (option) forButton()   {}

type options struct {
	timeout     time.Duration
	hasTimeout  bool
	user        string
	address     string
	unit        string
	stdin       func() io.Reader // nil: nothing
	stdout      io.Writer
	stderr      io.Writer
	env         map[string]string
	dir         string
	detach      bool
	delay       time.Duration
	hasDelay    bool
	hold        time.Duration
	keymap      string
	button      string
	at          *image.Point
	needle      string
	unlogged    bool
	datagram    bool
	lines       int
	since       string
	allowReboot bool
	tag         string
	display     string
	method      string
	region      image.Rectangle // empty: all of the screen
}

func collect[O interface{ set(*options) }](opts []O) options {
	var o options
	for _, opt := range opts {
		if any(opt) != nil {
			opt.set(&o)
		}
	}
	return o
}

// Timeout limits an operation to d of wall-clock time. For a command the guest
// ends it then (SIGTERM, and SIGKILL a second later), with exit code 124.
func Timeout(d time.Duration) WaitOption {
	return option(func(o *options) { o.timeout, o.hasTimeout = d, true })
}

// User runs a command as this user, or asks this user's service manager.
func User(name string) UserOption { return option(func(o *options) { o.user = name }) }

// Address is where to look for a port; "localhost" unless given.
func Address(addr string) PortOption { return option(func(o *options) { o.address = addr }) }

// Unit names the systemd unit behind a port: a wait for the port to open fails when the
// unit has failed, and its error has the unit's journal.
func Unit(name string) OpenPortOption { return option(func(o *options) { o.unit = name }) }

// Stdin is what a command reads; nothing unless given. Of several commands the
// first takes what it reads.
func Stdin(r io.Reader) CommandOption {
	return option(func(o *options) { o.stdin = func() io.Reader { return r } })
}

// Input is what each of several commands reads from its beginning to its end,
// and each attempt of a command that is repeated.
func Input(data []byte) CommandOption {
	return option(func(o *options) { o.stdin = func() io.Reader { return bytes.NewReader(data) } })
}

// Stdout receives a command's standard output as it arrives, instead of the Result.
func Stdout(w io.Writer) CommandOption { return option(func(o *options) { o.stdout = w }) }

// Stderr receives a command's standard error as it arrives, instead of the Result.
func Stderr(w io.Writer) CommandOption { return option(func(o *options) { o.stderr = w }) }

// Env adds a variable to a command's environment.
func Env(name, value string) DetachOption {
	return option(func(o *options) {
		if o.env == nil {
			o.env = map[string]string{}
		}
		o.env[name] = value
	})
}

// Dir is the directory in which a command runs; /tmp unless given.
func Dir(path string) DetachOption { return option(func(o *options) { o.dir = path }) }

// Region limits what is read to a part of the screen, in pixels from its upper left
// corner.
func Region(part image.Rectangle) RegionOption {
	return option(func(o *options) { o.region = part })
}

// Display is the X server to ask, by the name of its display: ":0" unless given. For windows and pictures it
// can also be a Wayland compositor, by the name of its socket, such as "wayland-1"; "wayland" is the first one. For
// pictures it can be a framebuffer, such as "fb1".
func Display(name string) DisplayOption { return option(func(o *options) { o.display = name }) }

// Method is the way to a picture of what a guest shows: "auto" unless given, "fb", "x11" or "wayland".
func Method(name string) PictureOption { return option(func(o *options) { o.method = name }) }

// Tag takes only the needles of a directory that have this tag.
func Tag(name string) TagOption { return option(func(o *options) { o.tag = name }) }

// Delay is how long a key is held down, and how long after it the next may follow.
func Delay(d time.Duration) KeyOption {
	return option(func(o *options) { o.delay, o.hasDelay = d, true })
}

// Hold is how long a key is held down, where that is not as long as the delay after it.
func Hold(d time.Duration) KeyOption { return option(func(o *options) { o.hold = d }) }

// Keymap is the layout that the guest expects of its keyboard: "us", "gb", "de" or "fr".
func Keymap(name string) KeyOption { return option(func(o *options) { o.keymap = name }) }

// Button is the button of a mouse: "left" unless given, "middle", "right", "wheel-up" or
// "wheel-down".
func Button(name string) ButtonOption { return option(func(o *options) { o.button = name }) }

// At is where to click, in pixels from the upper left corner of the screen.
func At(x, y int) ClickOption { return option(func(o *options) { o.at = &image.Point{x, y} }) }

// OnNeedle clicks on a needle, as soon as the screen shows it. See [Machine.AssertScreen].
func OnNeedle(path string) ClickOption { return option(func(o *options) { o.needle = path }) }

// Unlogged keeps a key out of the log of the run and of reports.
func Unlogged() KeyOption { return option(func(o *options) { o.unlogged = true }) }

// Datagram makes a wait for a unix socket one for a datagram socket.
func Datagram() SocketOption { return option(func(o *options) { o.datagram = true }) }

// Lines limits a journal to its last n lines.
func Lines(n int) JournalOption { return option(func(o *options) { o.lines = n }) }

// Since limits a journal to what is newer, as journalctl reads a time: "-5min",
// "today", "2026-01-02 12:00".
func Since(time string) JournalOption { return option(func(o *options) { o.since = time }) }

// AllowReboot lets the guest reboot by itself. Otherwise one that resets ends.
func AllowReboot() StartOption { return option(func(o *options) { o.allowReboot = true }) }
