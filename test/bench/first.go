package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// A program is an attest that runs a test file, and what the file prints.
type program struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner
	log   bytes.Buffer // standard error
}

// startAttest starts attest run with a test file of this text.
func (b *bench) startAttest(ctx context.Context, name, text string, flags ...string) (*program, error) {
	file := filepath.Join(b.dir, name)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return nil, err
	}
	p := &program{cmd: exec.CommandContext(ctx, b.attest, append(append([]string{"run"}, flags...), file)...)}
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(os.Interrupt) }
	p.cmd.Dir, p.cmd.Stderr = b.dir, &p.log
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.lines = bufio.NewScanner(stdout)
	return p, p.cmd.Start()
}

// await waits until the test prints a line that contains text.
func (p *program) await(text string) error {
	for p.lines.Scan() {
		if strings.Contains(p.lines.Text(), text) {
			return nil
		}
	}
	return fmt.Errorf("attest run did not print %q (%v):\n%s", text, p.cmd.Wait(), p.log.Bytes())
}

// end waits for the end of the process, which is to end with this exit code.
func (p *program) end(code int) error {
	for p.lines.Scan() {
	}
	err := p.cmd.Wait()
	if p.cmd.ProcessState.ExitCode() != code {
		return fmt.Errorf("attest run: %v:\n%s", err, p.log.Bytes())
	}
	return nil
}

// edits times attest run --watch: from the write of a file that a machine mounts until a
// test in the lab that stands prints what it found in the file.
func (b *bench) edits(ctx context.Context) (samples []time.Duration, err error) {
	mounted := filepath.Join(b.dir, "mounted")
	write := func(content string) error { return os.WriteFile(mounted, []byte(content+"\n"), 0o644) }
	if err := write("edit 0"); err != nil {
		return nil, err
	}
	p, err := b.startAttest(ctx, "edit_test.star", fmt.Sprintf(`m = machine(image = debian(), memory = %d, mount = {"/opt/mounted": "mounted"})

def setup():
    m.succeed("true")

def test_mounted():
    print(m.succeed("cat /opt/mounted"))
`, memory), "--watch")
	if err != nil {
		return nil, err
	}
	defer func() {
		p.cmd.Process.Signal(os.Interrupt)
		const interrupted = 130
		err = errors.Join(err, p.end(interrupted))
	}()
	if err := p.await("edit 0"); err != nil {
		return nil, err
	}
	for i := range b.warm + 1 {
		b.say("edit %d", i)
		if err := p.await("1 passed"); err != nil { // it waits for the next one
			return nil, err
		}
		content := fmt.Sprint("edit ", i+1)
		start := time.Now()
		if err := write(content); err != nil {
			return nil, err
		}
		if err := p.await(content); err != nil {
			return nil, err
		}
		if i > 0 { // the first edit opens what later ones find open
			samples = append(samples, time.Since(start))
		}
	}
	return samples, nil
}

// four is how many machines the lab of firstRun has.
const four = 4

// firstRun times attest run with machines that have never booted, until each has executed
// a command. Their image is there.
func (b *bench) firstRun(ctx context.Context) (took time.Duration, err error) {
	var text strings.Builder
	var names []string
	suffix := strings.ToLower(rand.Text()[:8]) // nobody has snapshots of these names
	for i := range four {
		name := fmt.Sprintf("first%d-%s", i, suffix)
		names = append(names, name)
		fmt.Fprintf(&text, "m%d = machine(name = %q, image = debian(), memory = %d)\n", i, name, memory)
	}
	fmt.Fprintf(&text, "\ndef test_all():\n    wait_all(machines, lambda m: m.succeed(\"true\"))\n    print(%q)\n", firstResult)
	defer func() {
		err = errors.Join(err, b.removeSnapshots(names))
	}()
	start := time.Now()
	p, err := b.startAttest(ctx, "four_test.star", text.String())
	if err != nil {
		return 0, err
	}
	if err := p.await(firstResult); err != nil {
		return 0, err
	}
	took = time.Since(start)
	return took, p.end(0)
}

// removeSnapshots removes the snapshots of machines of these names.
func (b *bench) removeSnapshots(names []string) error {
	list, err := exec.Command(b.attest, "snapshot", "list").Output()
	if err != nil {
		return fmt.Errorf("attest snapshot list: %w", err)
	}
	for line := range strings.Lines(string(list)) {
		for _, name := range names {
			if strings.Contains(line, name+" ") {
				id, _, _ := strings.Cut(line, " ")
				err = errors.Join(err, exec.Command(b.attest, "snapshot", "remove", id).Run())
			}
		}
	}
	return err
}
