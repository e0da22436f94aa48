package suite

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/operation"
	"github.com/attest-vm/attest/internal/script"
)

// keptDir is the directory, in the output directory, of the labs that failed
// tests left.
const keptDir = "kept"

// keptFile is the file in a kept lab's directory that says whose it is.
const keptFile = "test.json"

// A Kept is what is known of a lab that a failed test left.
type Kept struct {
	File    string `json:"file"` // absolute
	Test    string `json:"test"`
	Boot    string `json:"boot,omitempty"`
	Place   string `json:"place,omitempty"` // where it failed: "web_test.star:12:5"
	Message string `json:"message"`
}

// ReadKept returns whose lab is in a directory, or nil if no test left it.
func ReadKept(dir string) (*Kept, error) {
	data, err := os.ReadFile(filepath.Join(dir, keptFile))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	k := &Kept{}
	if err == nil {
		err = json.Unmarshal(data, k)
	}
	if err == nil && (!filepath.IsAbs(k.File) || k.Test == "") {
		err = errors.New("it names no test of a file")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", keptFile, err)
	}
	return k, nil
}

// A keptError is a failure whose lab was kept, or could not be.
type keptError struct {
	err  error
	note event.Detail
}

func (e *keptError) Error() string { return e.err.Error() }
func (e *keptError) Unwrap() error { return e.err }

// keepLimit is for a test whose own time is over.
const keepLimit = 5 * time.Minute

// keep saves the lab of a test that failed, if the run or its file asks for that, and says in
// the test's error where it is. A run that was interrupted keeps nothing: whoever
// did that waits for its end.
func (p *pass) keep(ctx context.Context, lab operation.Runner, t script.Test, err error) error {
	if err == nil || !p.suite.opts.Keep && !p.file.script.KeepOnFailure() || classify(ctx, err) == event.Interrupted {
		return err
	}
	saver, ok := lab.(operation.Saver)
	if !ok {
		return err
	}
	saveCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepLimit)
	defer cancel()
	dir, saveErr := p.save(saveCtx, saver, t, failureOf(err, event.Failed))
	if saveErr != nil {
		return &keptError{err, event.Detail{Title: "the lab could not be kept", Text: saveErr.Error()}}
	}
	event.Publish(ctx, event.Artifact{Kind: "lab", Path: dir})
	return &keptError{err, event.Detail{Title: "the lab was kept, this opens it", Text: "attest debug " + dir}}
}

func (p *pass) save(ctx context.Context, lab operation.Saver, t script.Test, f *event.Failure) (string, error) {
	dir := filepath.Join(p.suite.opts.OutDir, keptDir, event.ScopeOf(ctx).Name())
	if k, err := ReadKept(dir); err == nil && k != nil {
		if err := os.RemoveAll(dir); err != nil { // of an earlier run
			return "", err
		}
	}
	if err := lab.Save(ctx, dir); err != nil {
		return "", err
	}
	path, err := filepath.Abs(p.file.path)
	if err != nil {
		return "", err
	}
	k := Kept{File: path, Test: t.Name, Boot: p.label, Message: f.Message, Place: f.Position.String()}
	data, err := json.MarshalIndent(k, "", "  ")
	if err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, keptFile), append(data, '\n'), 0o644)
}
