package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A tap is the transport on a TAP's descriptor, without packet information or
// offloads (IFF_NO_PI): each system call is one frame.
type tap struct {
	file *os.File
	raw  syscall.RawConn

	// The reader's.
	slots   slots
	rest    []byte // what a frame has beyond a slot
	batch   *batch // that read fills
	taken   int    // slots in use
	rerr    error
	receive func(fd uintptr) bool

	// The writer's.
	frame []byte
	werr  error
	sent  bool
	send  func(fd uintptr) bool
	once  func(fd uintptr) bool // send, or not
}

// AttachTAP gives a NIC a port on a TAP whose descriptor is non-blocking. The
// file is the port's from here on, also on error. A TAP does not tell when whoever
// has its other end is gone: the caller closes the port.
func (s *Switch) AttachTAP(ctx context.Context, nic NIC, f *os.File) (*Port, error) {
	raw, err := f.SyscallConn()
	if err == nil {
		err = f.SetDeadline(time.Time{}) // only what the runtime can wait for takes one
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("network %s: attach %s/%s: %w", s.name, nic.Machine, nic.ID, err)
	}
	t := &tap{file: f, raw: raw, rest: make([]byte, beyondSlot)}
	t.receive, t.send = t.tryReceive, t.trySend
	t.once = func(fd uintptr) bool { t.sent = t.trySend(fd); return true }
	return s.attach(ctx, nic, t)
}

func (t *tap) close() error { return t.file.Close() }

func (t *tap) read(b *batch) error {
	b.frames, b.oversized = b.frames[:0], 0
	t.slots.open(readSlots)
	t.batch, t.taken = b, 0
	if err := t.raw.Read(t.receive); err != nil {
		t.rerr = err
	}
	t.slots.advance(t.taken)
	if len(b.frames) > 0 {
		return nil // an error comes again
	}
	if t.rerr != nil {
		t.slots.close()
		return closedFile(t.rerr)
	}
	return nil
}

// tryReceive reads the frames that wait, up to readSlots.
func (t *tap) tryReceive(fd uintptr) bool {
	for t.taken < readSlots {
		slot := t.slots.slot(t.taken)
		n, err := unix.Readv(int(fd), [][]byte{slot, t.rest})
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return t.taken > 0
		case err != nil:
			t.rerr = os.NewSyscallError("read", err)
			return true
		default:
			t.batch.frames = append(t.batch.frames, t.slots.take(t.taken, n, t.rest))
			t.taken++
		}
	}
	return true
}

func (t *tap) write(runs []run) error {
	for _, r := range runs {
		for at := r.off; at < r.end; {
			start := at + prefixLen
			at = start + int(frameLen(r.c.data[at:]))
			t.frame = r.c.data[start:at]
			if err := t.raw.Write(t.send); err != nil {
				return closedFile(err)
			}
			if t.werr != nil {
				return t.werr
			}
		}
	}
	return nil
}

func (t *tap) tryWrite(b []byte) (n int) {
	for n < len(b) {
		end := n + prefixLen + int(frameLen(b[n:]))
		t.frame, t.sent = b[n+prefixLen:end], false
		t.raw.Write(t.once)
		if !t.sent || t.werr != nil {
			t.werr = nil // a later write finds it again
			break
		}
		n = end
	}
	return n
}

func (t *tap) trySend(fd uintptr) bool {
	for {
		_, err := unix.Write(int(fd), t.frame)
		switch {
		case err == nil:
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return false
		case errors.Is(err, unix.EIO): // the interface is down: nobody is there to hear it
		case errors.Is(err, unix.EBADFD): // and now it is gone
			t.werr = io.EOF
		default:
			t.werr = os.NewSyscallError("write", err)
		}
		return true
	}
}

// closedFile makes the ways in which a TAP ends those of a connection.
func closedFile(err error) error {
	if errors.Is(err, os.ErrClosed) || errors.Is(err, unix.EBADFD) {
		return io.EOF
	}
	return err
}
