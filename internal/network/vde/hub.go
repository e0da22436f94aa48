package vde

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/printable"
)

const (
	// maxDir is the longest name of a directory: a client appends the name of
	// its socket, "/.PID-NUMBER" with a PID of up to 7 digits, and does not look
	// whether there is room (struct sockaddr_un, unix(7): 108 bytes with a NUL).
	maxDir = pathSize - len("/.1234567-00000") - 1

	// handshakeTimeout is how long a client may take to say what it wants: it
	// sends it with its first system call, and the rest is a host under load.
	handshakeTimeout = time.Minute

	// maxPlugs is how many clients are served at a time.
	maxPlugs = 1024

	// maxWarnings is of how many clients attest says what goes wrong with them: one that
	// tries again and again would fill all reports.
	maxWarnings = 100
)

// A Plug is a client.
type Plug struct {
	Number      int    // counts from 1, in the order of connections
	Description string // as the client gave it: "QEMU user=… PID=…"; not to be trusted
	// Conn is the connected datagram socket on which each message is a frame.
	Conn *net.UnixConn
}

// A Port is a client's place on the network.
type Port interface {
	Done() <-chan struct{} // closed when the port has ended by itself
	Close() error
}

// Attach gives a client a port. Plug.Conn is the port's, also on error.
type Attach func(context.Context, Plug) (Port, error)

// A Hub is a directory that clients plug into.
type Hub struct {
	dir    string
	info   os.FileInfo
	attach Attach
	ctx    context.Context
	end    context.CancelFunc
	ln     *net.UnixListener
	serves sync.WaitGroup
	warned atomic.Int64 // clients with which something went wrong
}

// DirTooLongError is a directory in which the sockets of clients have no room.
type DirTooLongError struct {
	Dir   string
	Limit int
}

func (e *DirTooLongError) Error() string {
	return fmt.Sprintf("directory %s for VDE's sockets has %d bytes, and at most %d leave room for the sockets' names; set ATTEST_STATE_DIR to a shorter path", e.Dir, len(e.Dir), e.Limit)
}

// Listen makes the directory, which must not be there yet, and serves clients
// until Close; each gets its port from attach. What goes wrong with a client is
// logged to ctx's bus and concerns nobody else.
func Listen(ctx context.Context, dir string, attach Attach) (_ *Hub, err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	if len(dir) > maxDir {
		return nil, &DirTooLongError{dir, maxDir}
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
		}
	}()
	info, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(dir, "ctl")})
	if err != nil {
		return nil, err
	}
	h := &Hub{dir: dir, info: info, attach: attach, ln: ln}
	h.ctx, h.end = context.WithCancel(ctx)
	h.serves.Go(h.accept)
	return h, nil
}

// Dir is what clients are given: QEMU's sock=, vde_plug's argument.
func (h *Hub) Dir() string { return h.dir }

// Close unplugs all clients, waits until nothing is left of them and removes
// the directory.
func (h *Hub) Close() error {
	h.end()
	h.ln.Close()
	h.serves.Wait()
	if n := h.warned.Load() - maxWarnings - 1; n > 0 {
		h.log("warning", fmt.Errorf("something went wrong with %d more clients", n))
	}
	return os.RemoveAll(h.dir)
}

func (h *Hub) accept() {
	places := make(chan struct{}, maxPlugs)
	for n := 1; ; n++ {
		control, err := h.ln.AcceptUnix()
		if err != nil {
			if h.ctx.Err() == nil {
				h.log("error", fmt.Errorf("accept: %w", err))
			}
			return
		}
		select {
		case places <- struct{}{}:
		default:
			h.warn(fmt.Errorf("client %d rejected: the limit is %d", n, maxPlugs))
			control.Close()
			continue
		}
		h.serves.Go(func() {
			defer func() { <-places }()
			if err := h.serve(control, n); err != nil && h.ctx.Err() == nil {
				h.warn(fmt.Errorf("client %d: %w", n, err))
			}
		})
	}
}

// warn says what went wrong with a client, of the first ones.
func (h *Hub) warn(err error) {
	switch n := h.warned.Add(1); {
	case n <= maxWarnings:
		h.log("warning", err)
	case n == maxWarnings+1:
		h.log("warning", fmt.Errorf("%w; of further clients like this one only the number is told, at the end", err))
	}
}

func (h *Hub) log(level string, err error) {
	event.Publish(h.ctx, event.Log{Level: level, Text: fmt.Sprintf("VDE socket %s: %v", h.dir, err)})
}

// serve is a client's connection, from its request to its end.
func (h *Hub) serve(control *net.UnixConn, number int) error {
	defer control.Close()
	defer context.AfterFunc(h.ctx, func() { control.Close() })()
	control.SetDeadline(time.Now().Add(handshakeTimeout))
	buf := make([]byte, maxRequest)
	n, _ := io.ReadAtLeast(control, buf, minRequest) // parseRequest refuses less
	if n == 0 {
		return nil // somebody who looked whether there is a switch
	}
	req, err := parseRequest(buf[:n])
	if err != nil {
		return err
	}
	theirs, err := h.clientSocket(req.socket)
	if err != nil {
		return err
	}
	defer os.Remove(theirs) // a killed client does not
	ours := filepath.Join(h.dir, strconv.Itoa(number))
	data, err := openData(ours, theirs)
	if err != nil {
		return err
	}
	defer os.Remove(ours)
	port, err := h.attach(h.ctx, Plug{Number: number, Description: printable.Line(req.description), Conn: data})
	if err != nil {
		return err
	}
	defer port.Close()
	if _, err := control.Write(reply(ours)); err != nil {
		return nil // gone
	}
	control.SetDeadline(time.Time{})
	h.serves.Go(func() {
		<-port.Done()
		control.Close()
	})
	io.Copy(io.Discard, control)
	return nil
}

// clientSocket is the path of a client's socket, which must be in the hub's own
// directory: a client that can name any socket of the host's could have frames
// sent to it. The name that came is only compared.
func (h *Hub) clientSocket(path string) (string, error) {
	dir, name := filepath.Split(path)
	if info, err := os.Stat(dir); err != nil || !os.SameFile(info, h.info) {
		return "", fmt.Errorf("its data socket %q is not in the directory of the control socket", path)
	}
	if !strings.HasPrefix(name, ".") || name == "." || name == ".." {
		return "", fmt.Errorf("its data socket %q does not have a client's name", path)
	}
	return filepath.Join(h.dir, name), nil
}

// openData makes the datagram socket ours, connected to theirs.
func openData(ours, theirs string) (*net.UnixConn, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	file := os.NewFile(uintptr(fd), ours)
	defer file.Close() // FileConn has a duplicate
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: theirs}); err != nil {
		return nil, fmt.Errorf("connect to its data socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: ours}); err != nil {
		return nil, fmt.Errorf("make a data socket: %w", err)
	}
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, errors.Join(err, os.Remove(ours))
	}
	return conn.(*net.UnixConn), nil
}
