package suite

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/attest-vm/attest/internal/supervise"
)

// An earlyHost has a place for the files of what is started early.
type earlyHost struct {
	*buildHost
	dir string
}

func (h earlyHost) StartHelper(ctx context.Context, prepare func(string) (supervise.Command, error)) (*supervise.Process, error) {
	dir, err := os.MkdirTemp(h.dir, "h")
	if err != nil {
		return nil, err
	}
	c, err := prepare(dir)
	if err != nil {
		return nil, err
	}
	return h.Command(ctx, c)
}

// One program is started early. It ends with the run, and leaves nothing.
func TestEarly(t *testing.T) {
	host := earlyHost{newBuildHost(t), t.TempDir()}
	e := &early{opened: func() (Host, error) { return host, nil }}
	prepare := func(dir string) (supervise.Command, error) {
		return supervise.Command{Path: "sleep", Args: []string{"sleep", "infinity"}}, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600)
	}
	p, err := e.start(t.Context(), prepare)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.start(t.Context(), prepare); err == nil {
		t.Error("a second one was started")
	}
	select {
	case <-p.Done():
		t.Errorf("it has ended: %v", p.Status())
	default:
	}
	e.end()
	select {
	case <-p.Done():
	default:
		t.Error("it has not ended")
	}
	if left, err := os.ReadDir(host.dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	e.end()
}

func TestNothingIsStartedEarly(t *testing.T) {
	broken := errors.New("broken")
	prepare := func(string) (supervise.Command, error) { return supervise.Command{}, broken }
	for name, e := range map[string]*early{
		"no host":              {opened: func() (Host, error) { return nil, broken }},
		"one without commands": {opened: func() (Host, error) { return &fakeHost{}, nil }},
		"no program":           {opened: func() (Host, error) { return earlyHost{newBuildHost(t), t.TempDir()}, nil }},
		"the run is over":      {opened: func() (Host, error) { return earlyHost{newBuildHost(t), t.TempDir()}, nil }, over: true},
	} {
		if p, err := e.start(context.Background(), prepare); p != nil || err == nil {
			t.Errorf("%s: got %v, %v", name, p, err)
		}
		e.end()
	}
}
