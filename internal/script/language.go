package script

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/operation"
)

// A Language reads test files of one ending.
type Language struct {
	Name   string // "Starlark"
	Ending string // ".star"
	// OnlyNamed keeps a directory from standing for its *_test files: others have files
	// of such names too.
	OnlyNamed bool
	// Load reads a file, and checks all that can be checked without a machine. A file
	// that cannot be run is a *LoadError. No machine is started.
	Load func(ctx context.Context, path string, opts Options) (File, error)
	// Names are the tests that a file may have which Load refuses, by its text alone. A
	// nil Names: that cannot be known.
	Names func(text []byte) []string
	// Foreign reports whether a text is a script that was written for another driver, whose
	// variables mean nothing here. A nil Foreign: none is.
	Foreign func(text []byte) bool
	// NewSession begins a session, with the machines and functions of a file unless
	// path is empty. Operations go to lab, which asks the session for the machines that
	// are declared by then. A nil NewSession: nobody can type this language.
	NewSession func(ctx context.Context, path string, opts Options, lab operation.Runner) (Session, error)
}

var (
	mu        sync.Mutex
	languages []Language // the first one registered that can be typed is the one that people type
)

// Register makes a language known. It panics if there is one of the same ending.
func Register(l Language) {
	mu.Lock()
	defer mu.Unlock()
	if slices.ContainsFunc(languages, func(o Language) bool { return o.Ending == l.Ending }) {
		panic("script: two languages for " + l.Ending)
	}
	languages = append(languages, l)
}

// Languages are all that are registered.
func Languages() []Language {
	mu.Lock()
	defer mu.Unlock()
	return slices.Clone(languages)
}

// IsTest reports whether a file is one that a directory stands for: *_test and the
// ending of a language.
func IsTest(name string) bool {
	return slices.ContainsFunc(Languages(), func(l Language) bool { return !l.OnlyNamed && strings.HasSuffix(name, "_test"+l.Ending) })
}

// An UnknownError is a file that no language reads.
type UnknownError struct {
	Path   string
	reason string
	status attest.Status
}

func (e *UnknownError) Error() string { return e.Path + ": " + e.reason }

// Status is Unsupported if another version may read the file.
func (e *UnknownError) Status() attest.Status { return e.status }

// of is the language of a file; other is the name of that of a file whose ending is no
// language's.
func of(path, other string) (Language, error) {
	known := Languages()
	for _, l := range known {
		if filepath.Ext(path) == l.Ending {
			return l, nil
		}
	}
	for _, l := range known {
		if l.Name == other {
			return l, nil
		}
	}
	var endings []string
	for _, l := range known {
		endings = append(endings, l.Ending)
	}
	return Language{}, &UnknownError{path, "not a test file: its name must end in " + strings.Join(endings, " or "), attest.Invalid}
}

// Load reads a test file in the language of its ending.
func Load(ctx context.Context, path string, opts Options) (File, error) {
	l, err := of(path, opts.Language)
	if err != nil {
		return nil, err
	}
	return l.Load(ctx, path, opts)
}

// Names are the tests of a file that cannot be loaded, as far as its text tells; known
// is false if that is not known.
func Names(path string) (names []string, known bool) {
	l, err := of(path, "")
	if err != nil || l.Names == nil {
		return nil, false
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, false
	}
	return l.Names(text), true
}

// NewSession begins a session in the language of a file; without one, in the
// first language that was registered and can be typed.
func NewSession(ctx context.Context, path string, opts Options, lab operation.Runner) (Session, error) {
	var l Language
	if path != "" {
		var err error
		if l, err = of(path, opts.Language); err != nil {
			return nil, err
		}
	} else if known := Languages(); len(known) > 0 {
		l = known[max(0, slices.IndexFunc(known, func(l Language) bool { return l.NewSession != nil }))]
	}
	if l.NewSession == nil {
		return nil, &UnknownError{path, l.Name + " has no prompt here; want a .star file", attest.Unsupported}
	}
	return l.NewSession(ctx, path, opts, lab)
}
