package backdoor

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/printable"
	"github.com/attest-vm/attest/internal/wire"
)

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
//go:embed install.sh
var installScript string

// An installation is one attempt.
type installation struct {
	nonce   string
	replies chan reply
	cancel  context.CancelFunc
	done    chan struct{}
	ended   chan error // its result, unless it was interrupted
}

func (b *Door) begin(ctx context.Context) *installation {
	ctx, cancel := context.WithCancel(ctx)
	i := &installation{nonce: rand.Text(), replies: make(chan reply, 8), cancel: cancel, done: make(chan struct{}), ended: make(chan error, 1)}
	go func() {
		defer close(i.done)
		if err := b.install(ctx, i); ctx.Err() == nil {
			i.ended <- err
		}
	}()
	return i
}

func (i *installation) result() <-chan error {
	if i == nil {
		return nil
	}
	return i.ended
}

func (i *installation) end() {
	if i != nil {
		i.cancel()
		<-i.done
	}
}

// hear passes a reply on. More than there is room for is no reply of ours.
func (i *installation) hear(r reply) {
	if i == nil || r.nonce != i.nonce {
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

// install has the shell take the agent from the other stream, or where there is none from
// its own as lines of base64, and start it.
func (b *Door) install(ctx context.Context, i *installation) error {
	binary, err := os.Open(b.opt.Binary)
	if err != nil {
		return &InstallError{b.opt.Machine, err.Error()}
	}
	defer binary.Close()
	h := sha256.New()
	size, err := io.Copy(h, binary)
	if err != nil {
		return &InstallError{b.opt.Machine, err.Error()}
	}
	define, to, port, length := "\n"+installScript, b.opt.Upload, wire.UploadPort, size
	content := func() io.Reader { return io.NewSectionReader(binary, 0, size) }
	if to == nil {
		text, err := encode(content())
		if err != nil {
			return &InstallError{b.opt.Machine, err.Error()}
		}
		to, port, length = b.opt.Shell, "''", int64(len(text))
		content = func() io.Reader { return bytes.NewReader(text) }
	}
	for try := 1; ; try++ {
		call := fmt.Sprintf("attest_install %s %d %x %d %s\n", i.nonce, length, h.Sum(nil), try, port)
		started, err := b.try(ctx, i, define+call, to, content())
		if !started || err == nil || ctx.Err() != nil || try == tries {
			return err
		}
		define = ""
	}
}

// lineLength is what base64 wraps its lines at: a terminal that is in between takes lines
// of 4095 bytes.
const lineLength = 76

// encode is a file as lines of base64.
func encode(r io.Reader) ([]byte, error) {
	content, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	for line := range slices.Chunk(content, lineLength/4*3) {
		text.Write(base64.StdEncoding.AppendEncode(nil, line))
		text.WriteByte('\n')
	}
	return text.Bytes(), nil
}

// try is one try. It is started when the guest wanted to have the agent; a guest that
// has the same one among its own programs takes that.
func (b *Door) try(ctx context.Context, i *installation, call string, to net.Conn, binary io.Reader) (started bool, err error) {
	b.setStep("its root shell has announced itself, and does not take the agent")
	if err := writeAll(ctx, b.opt.Shell, strings.NewReader(call)); err != nil {
		return false, b.broken(ctx, err)
	}
	r, err := i.await(ctx, b, "ready", "started")
	if err != nil {
		return false, err
	}
	if r.word == "ready" {
		b.setStep("its root shell has not got all of the agent")
		if err := writeAll(ctx, to, binary); err != nil {
			return false, b.broken(ctx, err)
		}
		b.setStep("the agent was put into the guest, and has not started")
		if r, err = i.await(ctx, b, "started"); err != nil {
			return true, err
		}
	}
	b.setStep("the agent was started in the guest, from " + printable.Text(r.text) + ", and has not answered")
	return true, nil
}

func (b *Door) broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return &InstallError{b.opt.Machine, err.Error()}
}

// await waits for one of some replies. There is no limit but the boot's: a guest may
// be slow.
func (i *installation) await(ctx context.Context, b *Door, wanted ...string) (reply, error) {
	for {
		select {
		case r := <-i.replies:
			if r.word == "failed" {
				return reply{}, &InstallError{b.opt.Machine, printable.Text(r.text)}
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
