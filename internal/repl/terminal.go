package repl

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/attest-vm/attest"
)

// lend gives a shell the terminal, or what is left of the pipe.
func (in *input) lend() (attest.Terminal, func(), error) {
	if in.pipe != nil {
		return attest.Terminal{Input: in.pipe, Output: in.o.Out}, func() {}, nil
	}
	t, giveBack, err := OpenTerminal(in.o.In, in.o.Out)
	if err != nil || in.o.Hold == nil {
		return t, giveBack, err
	}
	in.o.Hold(true)
	return t, func() { giveBack(); in.o.Hold(false) }, nil
}

// leaveKey is Ctrl-], as in telnet and virsh console: the way out of a guest
// that does not answer.
const leaveKey = 0x1d

// OpenTerminal makes this process's terminal that of a shell in a guest: every
// key goes there, until giveBack. What is no terminal is passed on as it is.
func OpenTerminal(in *os.File, out io.Writer) (t attest.Terminal, giveBack func(), err error) {
	if !Interactive(in) {
		return attest.Terminal{Input: in, Output: out}, func() {}, nil
	}
	keys, err := newKeys(in)
	if err != nil {
		return t, nil, err
	}
	mode, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		keys.close()
		return t, nil, fmt.Errorf("raw mode of the terminal: %w", err)
	}
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	over := make(chan struct{})
	resizes := make(chan attest.TerminalSize)
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-changed:
				select {
				case resizes <- sizeOf(in):
				case <-over:
					return
				}
			case <-over:
				return
			}
		}
	})
	t = attest.Terminal{Input: keys, Output: out, Type: cmp.Or(os.Getenv("TERM"), "dumb"), Size: sizeOf(in), Resizes: resizes}
	return t, func() {
		signal.Stop(changed)
		close(over)
		watch.Wait()
		keys.close()
		term.Restore(int(in.Fd()), mode)
		io.WriteString(out, "\r")
	}, nil
}

func sizeOf(f *os.File) attest.TerminalSize {
	columns, rows, err := term.GetSize(int(f.Fd()))
	if err != nil {
		columns, rows = 80, 24
	}
	return attest.TerminalSize{Columns: uint16(columns), Rows: uint16(rows)}
}

// keys reads a terminal until it is closed or Ctrl-] is pressed. Unlike a Read
// of the file itself it can be ended, so that it does not take the first key
// that is meant for whoever reads next.
type keys struct {
	in         *os.File
	end, ended *os.File // a pipe: ended can be read when end is closed
	reading    sync.Mutex
}

func newKeys(in *os.File) (*keys, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	return &keys{in: in, end: w, ended: r}, nil
}

func (k *keys) Read(b []byte) (int, error) {
	k.reading.Lock()
	defer k.reading.Unlock()
	fds := []unix.PollFd{{Fd: int32(k.in.Fd()), Events: unix.POLLIN}, {Fd: int32(k.ended.Fd()), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, err
		case fds[1].Revents != 0:
			return 0, io.EOF
		}
		break
	}
	n, err := k.in.Read(b)
	if i := bytes.IndexByte(b[:n], leaveKey); i >= 0 {
		return i, io.EOF
	}
	return n, err
}

// close ends Read and waits for it.
func (k *keys) close() {
	k.end.Close()
	k.reading.Lock()
	defer k.reading.Unlock()
	k.ended.Close()
}
