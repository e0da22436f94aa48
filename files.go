package attest

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/guest"
)

// CopyFromHost copies a file or a tree of the host into the guest, as cp -r
// does: into target if that is a directory, else as target, whose parent
// directories are made. A relative source begins at LabConfig.SourceDir. See
// docs/files.md for what a copy keeps.
func (m *Machine) CopyFromHost(ctx context.Context, source, target string) error {
	args := strconv.Quote(source) + ", " + strconv.Quote(target)
	return step(ctx, m.Name(), "copy_from_host", args, func(ctx context.Context) error {
		path := m.lab.sourcePath(source)
		if _, err := os.Lstat(path); err != nil {
			return fmt.Errorf("%s: copy_from_host(%s): %w", m.Name(), args, err)
		}
		r, err := m.use(ctx, "copy_from_host")
		if err != nil {
			return err
		}
		copied, err := r.guest.CopyIn(ctx, path, target)
		reportSkipped(ctx, m.Name(), copied)
		return r.explainRefusal(ctx, "copy_from_host", args, err)
	})
}

// CopyFromMachine copies a file or a tree of the guest to the host, into
// targetDir below LabConfig.OutDir, under its own name. Nothing is written outside
// of that copy, whatever the guest sends, and nothing through a symbolic link below
// OutDir. Two copies of different things to one name are an error.
func (m *Machine) CopyFromMachine(ctx context.Context, source, targetDir string) error {
	args := strconv.Quote(source)
	if targetDir != "" {
		args += ", " + strconv.Quote(targetDir)
	}
	return step(ctx, m.Name(), "copy_from_machine", args, func(ctx context.Context) error {
		r, err := m.use(ctx, "copy_from_machine")
		if err != nil {
			return err
		}
		dir := targetDir
		if !filepath.IsAbs(dir) {
			dir = m.lab.out.place(ctx, m.Name(), dir)
		}
		name := filepath.Base(filepath.Clean(source))
		root, path, err := m.lab.out.directory(dir, name, fmt.Sprintf("%s: copy of %s", m.Name(), source))
		if err != nil {
			return fmt.Errorf("%s: copy_from_machine(%s): %w", m.Name(), args, err)
		}
		defer root.Close()
		copied, err := r.guest.CopyOut(ctx, source, root)
		reportSkipped(ctx, m.Name(), copied)
		if err == nil {
			event.Publish(ctx, event.Artifact{Kind: "copy", Path: path})
		}
		return r.explainRefusal(ctx, "copy_from_machine", args, err)
	})
}

// CopyFromHostViaShell copies one file of the host into the guest by a command
// that reads it from its standard input: it needs a shell there, mkdir and cat.
func (m *Machine) CopyFromHostViaShell(ctx context.Context, source, target string) error {
	const operation = "copy_from_host_via_shell"
	args := strconv.Quote(source) + ", " + strconv.Quote(target)
	return step(ctx, m.Name(), operation, args, func(ctx context.Context) error {
		f, err := os.Open(m.lab.sourcePath(source))
		if err == nil {
			defer f.Close()
			var st os.FileInfo
			if st, err = f.Stat(); err == nil && !st.Mode().IsRegular() {
				err = fmt.Errorf("%s is not a file; copy_from_host copies trees", source)
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %s(%s): %w", m.Name(), operation, args, err)
		}
		const script = `mkdir -p -- "$(dirname -- "$ATTEST_TARGET")"; cat > "$ATTEST_TARGET"`
		result, err := m.command(ctx, operation, script, options{stdin: func() io.Reader { return f }, env: map[string]string{"ATTEST_TARGET": target}})
		if err == nil && result.ExitCode != 0 {
			return fmt.Errorf("%s: %s(%s): %s", m.Name(), operation, args, strings.TrimSpace(result.Stderr))
		}
		return err
	})
}

// reportSkipped says what of a tree cannot be copied: devices, sockets, pipes.
func reportSkipped(ctx context.Context, machine string, copied guest.CopyResult) {
	for _, what := range copied.Skipped {
		event.Publish(ctx, event.Log{Machine: machine, Level: "warning", Text: "not copied: " + what})
	}
}
