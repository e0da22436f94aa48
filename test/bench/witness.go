package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest"
)

// The witness is this program in the guest. It makes things happen that
// somebody waits for, says when they did, and tells the time. Requests and
// answers are lines; times are nanoseconds of the guest's CLOCK_MONOTONIC:
//
//	now               the time
//	file DELAY PATH   after DELAY ns makes PATH; the time right before
//	port DELAY PORT   after DELAY ns listens; the time right before. The port
//	                  is closed with the next request of this kind
//	socket DELAY PATH the same with a unix socket
//	console DELAY TEXT
//	                  after DELAY ns writes TEXT as a line to the console; the
//	                  time right before
const witnessArg = "witness"

func monotonic() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err) // cannot happen: the clock exists
	}
	return t.Nano()
}

func witness(in io.Reader, out io.Writer) {
	var listener net.Listener
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var what, arg string
		var delay time.Duration
		fmt.Sscan(lines.Text(), &what, &delay, &arg)
		at := monotonic()
		var err error
		switch what {
		case "now":
		case "file":
			time.Sleep(delay)
			at = monotonic()
			err = os.WriteFile(arg, nil, 0o644)
		case "port":
			if listener != nil {
				listener.Close()
			}
			time.Sleep(delay)
			at = monotonic()
			listener, err = net.Listen("tcp", ":"+arg)
		case "socket":
			time.Sleep(delay)
			at = monotonic()
			_, err = net.Listen("unix", arg) // stays open to the end
		case "console":
			var console *os.File
			if console, err = os.OpenFile("/dev/console", os.O_WRONLY|unix.O_NOCTTY, 0); err == nil {
				time.Sleep(delay)
				at = monotonic()
				_, err = fmt.Fprintln(console, arg)
				console.Close()
			}
		}
		if err != nil {
			fmt.Fprintln(out, err)
			return
		}
		fmt.Fprintln(out, at)
	}
}

// A clock is a witness as the host sees it.
type clock struct {
	*dialogue
	epoch time.Time
	worst time.Duration // the largest error of an offset so far
}

const witnessPath = "/usr/local/bin/attest-bench"

func startWitness(ctx context.Context, m *attest.Machine) (*clock, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if err := m.CopyFromHost(ctx, self, witnessPath); err != nil {
		return nil, err
	}
	return &clock{dialogue: converse(ctx, m, "exec "+witnessPath+" "+witnessArg), epoch: time.Now()}, nil
}

// exchanges is how many round trips an offset is made of.
const exchanges = 10

// offset is what to add to the host's time since epoch for the guest's time.
// The guest reads its clock somewhere within the shortest of several round
// trips, so that the middle is wrong by half of it at most.
func (c *clock) offset() (time.Duration, error) {
	shortest, offset := time.Hour, time.Duration(0)
	for range exchanges {
		sent := time.Since(c.epoch)
		answer, err := c.ask("now")
		received := time.Since(c.epoch)
		if err != nil {
			return 0, err
		}
		at, err := instant(answer)
		if err != nil {
			return 0, err
		}
		if d := received - sent; d < shortest {
			shortest, offset = d, at-(sent+d/2)
		}
	}
	c.worst = max(c.worst, shortest/2)
	return offset, nil
}

func instant(answer string) (time.Duration, error) {
	n, err := strconv.ParseInt(answer, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("the witness in the guest says %q", answer)
	}
	return time.Duration(n), nil
}
