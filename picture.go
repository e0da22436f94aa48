package attest

import (
	"context"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io"
	"os"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/screen"
	"github.com/attest-vm/attest/internal/vmm"
)

// look is what is on the screen.
func (r *run) look(ctx context.Context, s vmm.Screener) (*image.RGBA, error) {
	shown, err := r.shown(ctx, s)
	return shown, r.whenGone(err)
}

// shown is look for who cannot wait for the end of the run.
func (r *run) shown(ctx context.Context, s vmm.Screener) (picture *image.RGBA, err error) {
	err = r.dump(ctx, s, vmm.PPM, func(path string) (err error) {
		picture, err = screen.ReadFile(path)
		return err
	})
	return picture, err
}

// screenshot has the VMM write into the machine's own directory: it may not see
// others, and a file that is there is complete.
func (r *run) screenshot(ctx context.Context, s vmm.Screener, path string) error {
	m := r.machine
	var data []byte
	err := r.dump(ctx, s, vmm.PNG, func(shot string) (err error) {
		data, err = os.ReadFile(shot)
		return err
	})
	if err != nil {
		return r.whenGone(err)
	}
	return m.writePicture(ctx, path, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// writePicture writes a picture to a file, and tells reports of it.
func (m *Machine) writePicture(ctx context.Context, path string, write func(io.Writer) error) error {
	f, path, err := m.lab.out.create(path, m.Name()+": screenshot")
	if err == nil {
		err = write(f)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("%s: write the screenshot: %w", m.Name(), err)
	}
	event.Publish(ctx, event.Artifact{Kind: "screenshot", Path: path})
	return nil
}

// dump has the VMM write what is on the screen to a file of the machine's own, hands
// that to read, and removes it.
func (r *run) dump(ctx context.Context, s vmm.Screener, format vmm.PictureFormat, read func(path string) error) error {
	m := r.machine
	shot, err := os.CreateTemp(m.dir, "screen-*."+string(format))
	if err != nil {
		return &InfraError{m.Name(), "take a screenshot", err}
	}
	shot.Close()
	defer os.Remove(shot.Name())
	if err := s.Screenshot(ctx, shot.Name(), format); err != nil {
		return err
	}
	if err := read(shot.Name()); err != nil {
		return &InfraError{m.Name(), "read the screenshot", err}
	}
	return nil
}

// A stillScreen is the screen of a machine that is off since its kernel has panicked.
type stillScreen struct{ picture *image.RGBA }

func (s *stillScreen) Screenshot(_ context.Context, path string, format vmm.PictureFormat) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if format == vmm.PPM {
		err = screen.EncodePPM(f, s.picture)
	} else {
		err = png.Encode(f, s.picture)
	}
	return errors.Join(err, f.Close())
}

// keepPicture keeps what is on the screen of a machine whose kernel has panicked, before the machine is ended:
// for the report, and for who looks at the screen afterwards.
func (r *run) keepPicture() {
	const operation = "screenshot"
	m := r.machine
	s, ok := vmm.As[vmm.Screener](r.vm)
	if !ok || m.config.supports(m.lab.ctx, operation, vmm.CanShow) != nil {
		return
	}
	ctx, cancel := context.WithTimeout(m.lab.ctx, m.lab.host.scale(attachTimeout))
	defer cancel()
	shown, err := r.shown(ctx, s)
	if err == nil {
		r.still = &stillScreen{shown}
		name := fmt.Sprintf("%s-panic-%d.png", m.Name(), stepCounter.Load())
		err = m.writePicture(ctx, m.lab.out.place(ctx, m.Name(), name), func(w io.Writer) error { return png.Encode(w, shown) })
	}
	if err != nil && ctx.Err() == nil {
		event.Warnf(ctx, "%s: the kernel has panicked, and there is no picture of that: %v", m.Name(), err)
	}
}

// afterwards is the screen of a machine that is off since its kernel has panicked; nil if it is
// not, or has none.
func (r *run) afterwards() *stillScreen {
	select {
	case <-r.over:
		return r.still
	default:
		return nil
	}
}

// fallen is the run that ended when the machine's kernel panicked, and its screen; nil if the machine is not
// off for that reason, or has no screen.
func (m *Machine) fallen() (*run, *stillScreen) {
	m.mu.Lock()
	r := m.endedRun
	m.mu.Unlock()
	if r == nil {
		return nil, nil
	}
	<-r.over
	if r.still == nil {
		return nil, nil
	}
	return r, r.still
}
