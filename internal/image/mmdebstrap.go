package image

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/cache"
	"github.com/attest-vm/attest/internal/doctor"
	"github.com/attest-vm/attest/internal/supervise"
)

// mmdebstrap is one run of it that writes a tar.
type mmdebstrap struct {
	title  string
	args   []string
	script string // for sh, run when the packages are installed; $1 is the root
	env    []string
	run    []string                               // the run lines, for messages
	inputs []func(io.Writer) error                // what the descriptors from 3 on read
	entry  func(h *tar.Header, r io.Reader) error // gets the result, entry by entry
}

// mmdebstrap runs it in namespaces of its own, also for root ("unshare"): a
// build cannot leave mounts or processes behind. It returns what the script said at
// its end; see end.go for when a build is believed.
func (s *Store) mmdebstrap(ctx context.Context, m mmdebstrap) (said string, err error) {
	end := newEnding()
	m.entry = end.filter(m.entry)
	m.env = append(m.env, endEnv+"="+end.word)
	killed := oomKills("/")
	var t transcript
	err = s.runMmdebstrap(ctx, m, &t)
	if err == nil && !end.seen || errors.Is(err, errCutOff) {
		err = &BuildError{Image: m.title, Phase: cmp.Or(t.phase, "mmdebstrap"), Output: t.String(),
			Reason: "mmdebstrap exited with 0 but did not finish: one of its processes was killed, by hand or by the kernel for lack of memory"}
	}
	if n := oomKills("/") - killed; n > 0 {
		// Some scripts of packages go on when a command of theirs is killed.
		lack := &BuildError{Image: m.title, Phase: cmp.Or(t.phase, "mmdebstrap"), Output: t.String(), Err: err,
			Reason: fmt.Sprintf("memory ran out, and the kernel killed processes of this control group meanwhile (%d); close other programs, or give it more memory", n)}
		var failed *BuildError
		if errors.As(err, &failed) {
			lack.Err = errors.New(failed.Reason)
		}
		if err == nil || failed != nil {
			err = lack
		}
	}
	return end.text, err
}

func (s *Store) runMmdebstrap(ctx context.Context, m mmdebstrap, said *transcript) error {
	for _, t := range []string{"mmdebstrap", "apt-get", "tar"} {
		if _, err := lookTool(t); err != nil {
			return err
		}
	}
	path, err := lookTool("mmdebstrap")
	if err != nil {
		return err
	}
	if f := buildRights(); !f.OK {
		return &doctor.MissingError{What: f.Name, Reason: f.Detail, Remedy: f.Remedy}
	}
	tmp, err := s.buildDir(ctx)
	if err != nil {
		return err
	}
	defer tmp.Remove()

	caller := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	pipes, err := openPipes(2 + len(m.inputs))
	if err != nil {
		return err
	}
	defer pipes.close()
	stdout, stderr, inputs := pipes[0], pipes[1], pipes[2:]

	finished := make(chan error, 2+len(m.inputs))
	go func() {
		said.read(stderr.r, func(line string) { s.follow(ctx, said, m.run, line) })
		finished <- nil
	}()
	go func() {
		err := eachEntry(stdout.r, m.entry)
		if err != nil {
			cancel(err) // nobody reads any more: end the writer
		}
		finished <- err
	}()
	var extra []*os.File
	for i, write := range m.inputs {
		extra = append(extra, inputs[i].r)
		go func() {
			err := write(inputs[i].w)
			inputs[i].w.Close()
			if errors.Is(err, syscall.EPIPE) {
				err = nil // it did not want to know
			}
			finished <- err
		}()
	}
	// The lock on the build's directory lives as long as any process of the build.
	extra = append(extra, tmp.File)
	// The script is a file, and not an argument, for the sake of ps and of messages.
	script, root := filepath.Join(tmp.Dir, "script"), filepath.Join(tmp.Dir, "root")
	if err := errors.Join(os.WriteFile(script, []byte(m.script), 0o644), mkdirAs(root, tmp.Dir)); err != nil {
		return err
	}
	args := append([]string{path, "--verbose", "--mode=unshare", "--format=tar", `--customize-hook=sh "$ATTEST_SCRIPT" "$1"`}, m.args...)
	if mount := memoryMount(); mount != "" && !useDisk(ctx) {
		path = "/bin/sh"
		args = append([]string{"sh", "-c", mount, "sh"}, args...)
	}
	code, err := s.run.run(ctx, supervise.Command{
		Path:   path,
		Args:   args,
		Env:    toolEnv(append(m.env, "TMPDIR="+root, "ATTEST_SCRIPT="+script)...),
		Dir:    "/",
		Stdout: stdout.w, Stderr: stderr.w, ExtraFiles: extra,
		Isolate: true,
		Whole:   true, // for those who cannot be isolated: what is killed in part ends as a whole
	})
	pipes.closeChildEnds()
	var streams error
	for range cap(finished) {
		streams = errors.Join(streams, <-finished)
	}
	switch {
	case caller.Err() != nil:
		return context.Cause(caller)
	case err == nil && code != 0 && (streams == nil || errors.Is(streams, errCutOff)):
		return s.blame(m, said, code)
	case streams != nil:
		return streams
	}
	return err
}

type useDiskKey struct{}

// useDisk says that a build does not fit into memory.
func useDisk(ctx context.Context) bool { return ctx.Value(useDiskKey{}) != nil }

// inMemory runs a build, in memory at first; one that runs out of space there
// is done again on the disk. attempt is called once or twice.
func inMemory(ctx context.Context, attempt func(context.Context) error) error {
	err := attempt(ctx)
	var space *SpaceError
	if !errors.As(err, &space) || space.Need != 0 || memoryMount() == "" {
		return err
	}
	return attempt(context.WithValue(ctx, useDiskKey{}, true))
}

// pipe is one pipe.
type pipe struct{ r, w *os.File }

type pipes []pipe

func openPipes(n int) (p pipes, err error) {
	for range n {
		r, w, err := os.Pipe()
		if err != nil {
			p.close()
			return nil, err
		}
		p = append(p, pipe{r, w})
	}
	return p, nil
}

// closeChildEnds closes what the process had: the first two pipes' writing
// ends, the others' reading ends.
func (p pipes) closeChildEnds() {
	for i := range p {
		if i < 2 {
			p[i].w.Close()
		} else {
			p[i].r.Close()
		}
	}
}

func (p pipes) close() {
	for i := range p {
		p[i].r.Close()
		p[i].w.Close()
	}
}

// buildDir is where mmdebstrap unpacks. Root uses the cache. For everybody else
// the subordinate users of the build have to reach the directory, and a home is
// often closed to them: then it is below /var/tmp.
func (s *Store) buildDir(ctx context.Context) (*cache.Scratch, error) {
	if os.Geteuid() == 0 {
		return s.scratch()
	}
	parent := filepath.Join(s.root, "tmp")
	if !reachable(parent) {
		parent = otherTmp()
		if err := makePrivate(parent); err != nil {
			return nil, fmt.Errorf("a directory to build in: %w", err)
		}
	}
	t, err := cache.NewScratch(parent, s.sup)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(t.Dir, 0o777|os.ModeSticky); err != nil {
		t.Remove()
		return nil, err
	}
	return t, nil
}

// mkdirAs makes a directory with the mode of another.
func mkdirAs(dir, like string) error {
	st, err := os.Stat(like)
	if err != nil {
		return err
	}
	return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, st.Mode()))
}

// otherTmp is where builds of a user are whose home is closed.
func otherTmp() string { return filepath.Join("/var/tmp", "attest-"+strconv.Itoa(os.Geteuid())) }

// makePrivate makes a directory that others can pass through and not write to.
func makePrivate(dir string) error {
	if err := os.Mkdir(dir, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	st, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !st.IsDir() || st.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()) || st.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s exists and belongs to another user", dir)
	}
	return os.Chmod(dir, 0o711)
}

// reachable reports whether every user can pass through dir.
func reachable(dir string) bool {
	for ; ; dir = filepath.Dir(dir) {
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil || st.Mode&0o001 == 0 {
			return false
		}
		if dir == "/" {
			return true
		}
	}
}

var progressLines = []struct {
	re   *regexp.Regexp
	text string
}{
	{regexp.MustCompile(`^Get:\d+ \S+ .*/\S+ (?:amd64|arm64|all) ([a-z0-9][a-z0-9+.-]*) `), "downloading $1"},
	{regexp.MustCompile(`^(?:Get|Hit):\d+ `), "downloading package lists"},
	{regexp.MustCompile(`^Unpacking ([^ :]+)`), "unpacking $1"},
	{regexp.MustCompile(`^Setting up ([^ :]+)`), "setting up $1"},
}

// follow turns a line of mmdebstrap's or apt's into progress.
func (s *Store) follow(ctx context.Context, t *transcript, run []string, line string) {
	p, _ := work(ctx)
	if rest, ok := strings.CutPrefix(line, "attest: run "); ok {
		if i, err := strconv.Atoi(rest); err == nil && i < len(run) {
			t.phase = fmt.Sprintf("run line %d", i)
			p.Say("running %s", run[i])
		}
		return
	}
	if phase, ok := strings.CutPrefix(line, "attest: phase "); ok {
		t.phase = phase
		p.Say("%s", phase)
		return
	}
	if phase, ok := strings.CutPrefix(line, "I: "); ok {
		for known, name := range phases {
			if strings.HasPrefix(phase, known) {
				t.phase = name
				p.Tick("%s", name)
			}
		}
		return
	}
	for _, l := range progressLines {
		if m := l.re.FindStringSubmatchIndex(line); m != nil {
			p.Tick("%s", l.re.ExpandString(nil, l.text, line, m))
			return
		}
	}
}

// phases are mmdebstrap's announcements in the words of a person.
var phases = map[string]string{
	"running apt-get update":        "fetching package lists",
	"downloading packages":          "downloading packages",
	"extracting archives":           "unpacking packages",
	"installing essential packages": "installing essential packages",
	"installing remaining packages": "installing packages",
	"cleaning package lists":        "cleaning up",
	"creating tarball":              "packing the image",
	"running --setup-hook":          "unpacking the base image",
	"running --customize-hook":      "configuring",
	"automatically chosen":          "starting",
	"chroot architecture":           "starting",
}

var (
	noPackage = regexp.MustCompile(`^E: (Unable to locate package (\S+)|Package '([^']+)' has no installation candidate|` +
		`Version '[^']*' for '([^']+)' was not found|Release '[^']*' for '([^']+)' was not found|` +
		`Couldn't find any package by (?:glob|regex) '([^']+)'|Package (\S+) contains no kernel|` +
		`Can't find a source to download version '[^']*' of '([^']+)')`)
	unmet     = regexp.MustCompile(`^E: (Unable to correct problems|Error, pkgProblemResolver)`)
	noSpace   = regexp.MustCompile(`(?i)no space left on device|you don't have enough free space|disk quota exceeded`)
	runFailed = regexp.MustCompile(`^attest: run (\d+) failed (\d+)$`)
	noSuite   = regexp.MustCompile(`The repository '(\S+) (\S+) Release' does not have a Release file`)
	noMirror  = regexp.MustCompile(`(?i)could not resolve|temporary failure resolving|could not connect|connection (?:failed|refused|timed out)|network is unreachable`)
)

// blame says what went wrong in terms of the spec or of the host.
func (s *Store) blame(m mmdebstrap, t *transcript, code int) error {
	output := t.String()
	if f := runFailed.FindStringSubmatch(t.run); f != nil {
		i, _ := strconv.Atoi(f[1])
		exit, _ := strconv.Atoi(f[2])
		if i < len(m.run) {
			return &RunError{Image: m.title, Index: i, Line: m.run[i], Code: exit, Output: outputOfRun(t.tail, i)}
		}
	}
	all := strings.Join(append(t.errors, t.tail...), "\n")
	if noSpace.MatchString(all) {
		return &SpaceError{Path: s.root, Has: cache.Free(s.root), Err: unix.ENOSPC}
	}
	for _, line := range t.errors {
		if f := noPackage.FindStringSubmatch(line); f != nil {
			e := &PackageError{Image: m.title, Reason: f[1]}
			for _, name := range f[2:] {
				e.Package += name
			}
			return e
		}
		if unmet.MatchString(line) {
			return &PackageError{Image: m.title, Reason: "the packages cannot be installed together" + indented(output)}
		}
	}
	if f := noSuite.FindStringSubmatch(all); f != nil && strings.Contains(all, "404  Not Found") {
		return specErrorf("suite", "%s has no Debian release %q; give the code name of one, such as bookworm, or stable (%s names another mirror, such as an archive of old releases)", f[1], f[2], MirrorEnv)
	}
	e := &BuildError{Image: m.title, Phase: cmp.Or(t.phase, "mmdebstrap"), Output: output, Err: fmt.Errorf("mmdebstrap: exit code %d", code)}
	if code == killedCode {
		e.Reason = "mmdebstrap " + wasKilled
		return e
	}
	if line := noMirror.FindString(all); line != "" {
		mirror := "Debian's mirror"
		if s.mirror != "" {
			mirror = MirrorEnv + "=" + s.mirror
		}
		e.Reason = mirror + " cannot be reached: " + strings.ToLower(line)
	} else if len(t.errors) > 0 {
		e.Reason = strings.TrimPrefix(t.errors[0], "E: ")
	}
	return e
}

// outputOfRun is what the last run line wrote, as far as it is in the tail.
func outputOfRun(tail []string, i int) string {
	start := slices.Index(tail, fmt.Sprintf("attest: run %d", i))
	return strings.Join(tail[start+1:], "\n")
}
