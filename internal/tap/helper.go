package tap

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const execStep = "start the program"

// Any binary that imports this package can be the helper.
func init() {
	if len(os.Args) == 0 || os.Args[0] != helperName {
		return
	}
	if err := helper(); err != nil {
		fmt.Fprintln(os.Stderr, helperName+":", err)
		os.Exit(127)
	}
	os.Exit(0)
}

// helper is the process in the namespace until the program takes its place.
func helper() error {
	if len(os.Args) != 2 {
		return errors.New("attest starts this program; it does nothing on its own")
	}
	control, err := strconv.Atoi(os.Args[1])
	if err != nil {
		return err
	}
	unix.CloseOnExec(control)
	buf := make([]byte, 1<<20)
	n, err := unix.Read(control, buf)
	if err != nil {
		return os.NewSyscallError("read", err)
	}
	var o order
	if err := json.Unmarshal(buf[:n], &o); err != nil {
		return err
	}
	taps, err := makeLinks(o.Links)
	if err != nil {
		return say(control, err)
	}
	fds := make([]int, len(taps))
	for i, f := range taps {
		if fds[i], err = rawFD(f); err != nil {
			return say(control, failed("hand over the TAP", err))
		}
	}
	b, err := json.Marshal(answer{})
	if err == nil {
		err = unix.Sendmsg(control, b, unix.UnixRights(fds...), nil, 0)
	}
	if err != nil || o.Path == "" {
		return err
	}
	if o.View != nil {
		inherited := make([]int, control) // what the program gets: all in front of the socket
		for fd := range inherited {
			inherited[fd] = fd
		}
		if err := o.View.RestrictThread(inherited); err != nil { // of the main thread, which executes the program
			return say(control, &UnavailableError{Step: execStep, Err: err})
		}
	}
	err = unix.Exec(o.Path, o.Args, os.Environ())
	return say(control, &UnavailableError{Step: execStep, Err: err})
}

// rawFD returns the descriptor of a file that stays non-blocking. File.Fd would
// make it blocking for every process that shares it.
func rawFD(f *os.File) (fd int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	err = raw.Control(func(n uintptr) { fd = int(n) })
	return fd, err
}

func makeLinks(links []Link) (taps []*os.File, err error) {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return nil, failed("turn on lo", err)
	}
	for i, l := range links {
		f, err := l.make(i)
		if err != nil {
			return nil, err
		}
		taps = append(taps, f)
	}
	return taps, nil
}

// say reports a failure.
func say(control int, err error) error {
	a := answer{Step: "make the interfaces", Err: err.Error()}
	var known *UnavailableError
	if errors.As(err, &known) {
		a = answer{Step: known.Step, Err: known.Err.Error(), Remedy: known.Remedy}
		var errno syscall.Errno
		if errors.As(known.Err, &errno) {
			a.Errno = errno
		}
	}
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	_, err = unix.Write(control, b)
	return err
}
