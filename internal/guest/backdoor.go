package guest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/printable"
	"github.com/attest-vm/attest/internal/wire"
)

// Marker is what a guest says when its root shell is there: the backdoor.service
// of NixOS tests.
const Marker = "Spawning backdoor root shell..."

// A Backdoor puts the agent into a guest that comes without it, through the root
// shell that the guest offers on a console: each time that the shell announces
// itself, so after every boot.
type Backdoor struct {
	Machine string
	Shell   net.Conn // the shell's console
	Upload  net.Conn // a stream into the guest: wire.UploadPort
	Binary  string   // path of the executable that becomes the agent
	// Installed is called after each attempt. An error is an *InstallError, or the
	// end of the context.
	Installed func(error)

	mu   sync.Mutex
	said dialog
	step string // what it waits for
}

// An InstallError is a guest in which attest's agent cannot be started.
type InstallError struct {
	Machine string
	Reason  string
}

func (e *InstallError) Error() string {
	return fmt.Sprintf("%s: attest's agent cannot run in the guest: %s", e.Machine, e.Reason)
}

// Status says that it is the guest which did not come up.
func (*InstallError) Status() event.Status { return event.BootFailed }

// installScript defines a function of the shell. It needs a bash, as backdoors
// are, and coreutils.
//
//go:embed backdoor.sh
var installScript string

// Serve installs the agent whenever the guest offers its shell, until the shell's
// console ends or ctx does.
func (b *Backdoor) Serve(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { b.Shell.Close() })
	defer stop()
	var install *installation
	defer func() { install.end() }()
	buf := make([]byte, 4096)
	for {
		n, err := b.Shell.Read(buf)
		b.mu.Lock()
		heard := b.said.feed(buf[:n])
		b.mu.Unlock()
		for _, h := range heard {
			if h.marker {
				install.end()
				install = b.begin(ctx)
			} else if install != nil {
				install.hear(h)
			}
		}
		if err != nil {
			return
		}
	}
}

// State is how far it has come, for people, and the last that the guest said on
// the shell's console.
func (b *Backdoor) State() (step, said string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if step = b.step; step == "" {
		step = fmt.Sprintf("its root shell did not announce itself (%q on /dev/hvc0); in the guest backdoor.service does that, see its journal", Marker)
	}
	return step, b.said.tail()
}

func (b *Backdoor) setStep(step string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.step = step
}

// An installation is one attempt.
type installation struct {
	nonce   string
	replies chan reply
	cancel  context.CancelFunc
	done    chan struct{}
}

func (b *Backdoor) begin(ctx context.Context) *installation {
	ctx, cancel := context.WithCancel(ctx)
	i := &installation{nonce: rand.Text(), replies: make(chan reply, 8), cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(i.done)
		err := b.install(ctx, i)
		if ctx.Err() == nil {
			b.Installed(err)
		}
	}()
	return i
}

func (i *installation) end() {
	if i != nil {
		i.cancel()
		<-i.done
	}
}

// hear passes a reply on. More than there is room for is no reply of ours.
func (i *installation) hear(r reply) {
	if r.nonce != i.nonce {
		return
	}
	select {
	case i.replies <- r:
	default:
	}
}

// tries is how often the agent is put into the guest. What a guest that was reset
// has not read of the stream comes first in the next one, which gets something else
// than the agent then, and empties the stream before the second try.
const tries = 2

// install has the shell take the agent from the other stream and start it.
func (b *Backdoor) install(ctx context.Context, i *installation) error {
	binary, err := os.Open(b.Binary)
	if err != nil {
		return &InstallError{b.Machine, err.Error()}
	}
	defer binary.Close()
	h := sha256.New()
	size, err := io.Copy(h, binary)
	if err != nil {
		return &InstallError{b.Machine, err.Error()}
	}
	define := "\n" + installScript
	for try := 1; ; try++ {
		call := fmt.Sprintf("attest_install %s %d %x %d %s\n", i.nonce, size, h.Sum(nil), try, wire.UploadPort)
		started, err := b.try(ctx, i, define+call, io.NewSectionReader(binary, 0, size))
		if !started || err == nil || ctx.Err() != nil || try == tries {
			return err
		}
		define = ""
	}
}

// try is one try. It is started when the guest wanted to have the agent; a guest that
// has the same one among its own programs takes that.
func (b *Backdoor) try(ctx context.Context, i *installation, call string, binary io.Reader) (started bool, err error) {
	b.setStep("its root shell has announced itself, and does not take the agent")
	if err := writeAll(ctx, b.Shell, strings.NewReader(call)); err != nil {
		return false, b.broken(ctx, err)
	}
	r, err := i.await(ctx, b, "ready", "started")
	if err != nil {
		return false, err
	}
	if r.word == "ready" {
		b.setStep("its root shell has not got all of the agent")
		if err := writeAll(ctx, b.Upload, binary); err != nil {
			return false, b.broken(ctx, err)
		}
		b.setStep("the agent was put into the guest, and has not started")
		if r, err = i.await(ctx, b, "started"); err != nil {
			return true, err
		}
	}
	b.setStep("the agent was started in the guest, from " + r.text + ", and has not answered")
	return true, nil
}

func (b *Backdoor) broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return &InstallError{b.Machine, err.Error()}
}

// await waits for one of some replies. There is no limit but the boot's: a guest may
// be slow.
func (i *installation) await(ctx context.Context, b *Backdoor, wanted ...string) (reply, error) {
	for {
		select {
		case r := <-i.replies:
			if r.word == "failed" {
				return reply{}, &InstallError{b.Machine, r.text}
			}
			if slices.Contains(wanted, r.word) {
				return r, nil
			}
		case <-ctx.Done():
			return reply{}, context.Cause(ctx)
		}
	}
}

// writeAll writes all of r, until ctx ends.
func writeAll(ctx context.Context, conn net.Conn, r io.Reader) error {
	conn.SetWriteDeadline(time.Time{})
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		conn.SetWriteDeadline(time.Unix(1, 0))
	})
	_, err := io.Copy(struct{ io.Writer }{conn}, r)
	if !stop() {
		<-interrupted
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = context.Cause(ctx)
	}
	return err
}

// maxSaid is how much is kept of what the guest says on the shell's console. Its
// replies are shorter.
const maxSaid = 4 << 10

// A dialog looks in what comes from the guest, which can be anything, for what
// concerns the installation.
type dialog struct {
	line []byte // that is not complete, or the end of it
	last []byte // of all
}

// A reply is a line of the script's, or the marker.
type reply struct {
	marker            bool
	nonce, word, text string
}

// feed takes the next bytes and returns what they complete.
func (d *dialog) feed(p []byte) (heard []reply) {
	d.last = keepEnd(append(d.last, p...))
	for _, c := range p {
		if c == '\n' {
			if r, ok := parseReply(string(d.line)); ok {
				heard = append(heard, r)
			}
			d.line = d.line[:0]
			continue
		}
		d.line = keepEnd(append(d.line, c))
		if c == Marker[len(Marker)-1] && bytes.HasSuffix(d.line, []byte(Marker)) {
			heard = append(heard, reply{marker: true})
			d.line = d.line[:0]
		}
	}
	return heard
}

// keepEnd cuts off the beginning of what has grown to twice the limit.
func keepEnd(p []byte) []byte {
	if len(p) < 2*maxSaid {
		return p
	}
	return append(p[:0], p[len(p)-maxSaid:]...)
}

// parseReply reads "attest:NONCE:WORD:TEXT".
func parseReply(line string) (r reply, ok bool) {
	_, line, ok = strings.Cut(strings.TrimSuffix(line, "\r"), "attest:")
	if !ok {
		return reply{}, false
	}
	parts := strings.SplitN(line, ":", 3)
	if len(parts) != 3 {
		return reply{}, false
	}
	return reply{nonce: parts[0], word: parts[1], text: printable.Text(parts[2])}, true
}

// tail is the end of what was said, for people.
func (d *dialog) tail() string {
	text := strings.TrimSpace(string(d.last))
	return printable.Text(text[max(0, len(text)-300):])
}
