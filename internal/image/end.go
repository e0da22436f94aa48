package image

import (
	"archive/tar"
	"bufio"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// No exit code says that a build is finished: mmdebstrap exits with 0 when the
// process that did its work is killed (its process 1 returns that one's status
// shifted by 8 bits, and a signal has its number in the lower ones). What counts is
// that the script came to its last line, which writes a word of attest's into the
// root, that this word is in the tar, that the tar has its own end, and that in
// it is what was asked for.

const (
	endEnv   = "ATTEST_END" // has the word
	endEntry = "attest-end" // in the root: the word in a line, then what the script has to say
	maxEnd   = 64 << 20     // bytes of it; dpkg's status has half a MiB
)

// An ending looks for the end in a stream of entries.
type ending struct {
	word string
	seen bool
	text string // what the script said after the word
}

func newEnding() *ending { return &ending{word: rand.Text()} }

// filter is f for all entries but the end's own.
func (e *ending) filter(f func(h *tar.Header, r io.Reader) error) func(h *tar.Header, r io.Reader) error {
	return func(h *tar.Header, r io.Reader) error {
		if treePath(h.Name) != endEntry {
			return f(h, r)
		}
		data, err := io.ReadAll(io.LimitReader(r, maxEnd))
		word, text, _ := strings.Cut(string(data), "\n")
		if err == nil && word == e.word {
			e.seen, e.text = true, text
		}
		return err
	}
}

// errCutOff is a tar without its end, two blocks of zeros.
var errCutOff = errors.New("the archive is cut off")

// endReader notes that a stream has ended.
type endReader struct {
	r     io.Reader
	ended bool
}

func (e *endReader) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if n == 0 && err == io.EOF {
		e.ended = true
	}
	return n, err
}

// dpkgStatus is what dpkg says of the packages of a system, by name, in the file
// var/lib/dpkg/status (dpkg-query(1); deb822(5)).
type dpkgStatus struct {
	installed map[string]bool // by name, and the names that they provide
	broken    []string        // neither installed nor removed
}

func parseStatus(text string) dpkgStatus {
	s := dpkgStatus{installed: map[string]bool{}}
	var name, status, provides string
	end := func() {
		_, state, _ := strings.Cut(status, " ") // before it: what is wanted
		switch {
		case name == "", state == "ok not-installed", state == "ok config-files":
		case state == "ok installed":
			s.installed[name] = true
			for p := range strings.SplitSeq(provides, ",") {
				if f := strings.Fields(p); len(f) > 0 {
					s.installed[f[0]] = true
				}
			}
		default:
			s.broken = append(s.broken, name+" ("+status+")")
		}
		name, status, provides = "", "", ""
	}
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, maxEnd)
	for lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ": ")
		switch {
		case field == "":
			end()
		case field == "Package":
			name = value
		case field == "Status":
			status = value
		case field == "Provides":
			provides = value
		}
	}
	end()
	return s
}

// check says what of these packages, as apt-get install takes them, is not as it
// was asked for.
func (s dpkgStatus) check(packages []string) error {
	var missing []string
	for _, p := range packages {
		if !s.satisfies(p) {
			missing = append(missing, p)
		}
	}
	switch {
	case len(s.installed) == 0:
		return errors.New("dpkg lists no package in it")
	case len(missing) > 0:
		return fmt.Errorf("packages are not installed as requested: %s", strings.Join(missing, ", "))
	case len(s.broken) > 0:
		return fmt.Errorf("packages are only half installed: %s", strings.Join(s.broken, ", "))
	}
	return nil
}

// packageParts are name, mark and what selects a version or architecture.
var packageParts = regexp.MustCompile(`^([^:=/]*?)(:[a-z0-9]+)?([=/].*?)?([+-]?)$`)

// satisfies follows apt: a name may end in + or - by itself; otherwise these marks
// say that the package is to be there or not.
func (s dpkgStatus) satisfies(p string) bool {
	if s.installed[p] {
		return true
	}
	part := packageParts.FindStringSubmatch(p)
	if part == nil {
		return false
	}
	name, mark := part[1], part[4]
	if mark == "-" {
		return !s.installed[name]
	}
	return s.installed[name] || s.installed[name+mark]
}

// checkSystem looks for what every base must have.
func checkSystem(x index, status string) error {
	for what, names := range map[string][]string{
		"shell": {"bin/sh", "usr/bin/sh"}, "init": {"sbin/init", "usr/sbin/init"}, "file var/lib/dpkg/status": {"var/lib/dpkg/status"},
	} {
		if !slices.ContainsFunc(names, func(name string) bool { _, ok := x[name]; return ok }) {
			return fmt.Errorf("it has no %s", what)
		}
	}
	return parseStatus(status).check(basePackages)
}

// modules is what kernel.sh says at its end of a package that has modules.
const modules = "modules\n"

// checkModules looks whether every module that depmod has found is there.
func checkModules(x index, dep []byte, said string) error {
	if said != modules {
		if len(x) > 0 {
			return errors.New("it has modules, and the package has none")
		}
		return nil
	}
	count := 0
	for line := range strings.Lines(string(dep)) {
		name, _, _ := strings.Cut(line, ":")
		if _, ok := x[treePath(name)]; !ok {
			return fmt.Errorf("the module %s is missing", name)
		}
		count++
	}
	if count == 0 {
		return errors.New("it has no modules, and the package has some")
	}
	return nil
}

// completeName is the end mark of an object: a list of its files, which attest
// writes when all else is written. An object without it, or that is not as the list
// says, is used by nobody.
const completeName = "complete"

type completeMark struct {
	Files map[string]int64 `json:"files"` // their sizes in bytes; all but usedName
}

func markComplete(dir string) error {
	m, err := filesOf(dir)
	if err != nil {
		return err
	}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, completeName), append(data, '\n'), 0o644)
}

func filesOf(dir string) (completeMark, error) {
	m := completeMark{Files: map[string]int64{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return m, err
	}
	for _, e := range entries {
		if e.Name() == usedName || e.Name() == completeName {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return m, err
		}
		m.Files[e.Name()] = info.Size()
	}
	return m, nil
}

// An incompleteError is an object that is of no use.
type incompleteError struct {
	dir, reason string
}

func (e *incompleteError) Error() string {
	return fmt.Sprintf("image cache: %s is unusable: %s", e.dir, e.reason)
}

// checkMark compares an object with its end mark.
func checkMark(dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, completeName))
	if errors.Is(err, os.ErrNotExist) {
		return &incompleteError{dir, "it has no end mark: its build did not finish, or another version of attest has made it"}
	}
	if err != nil {
		return &incompleteError{dir, err.Error()}
	}
	var want completeMark
	if err := json.Unmarshal(data, &want); err != nil {
		return &incompleteError{dir, fmt.Sprintf("its end mark is damaged: %v", err)}
	}
	got, err := filesOf(dir)
	if err != nil {
		return &incompleteError{dir, err.Error()}
	}
	for _, name := range slices.Sorted(maps.Keys(want.Files)) {
		if size, ok := got.Files[name]; !ok {
			return &incompleteError{dir, fmt.Sprintf("its file %s is missing", name)}
		} else if size != want.Files[name] {
			return &incompleteError{dir, fmt.Sprintf("its file %s has %d bytes instead of %d", name, size, want.Files[name])}
		}
	}
	return nil
}
