package image

import (
	"fmt"
	"strings"
)

// Errors of Build that are the user's to mend are *SpecError, *PackageError and
// *RunError; those of the host are *SpaceError, *BuildError and *doctor.MissingError.

// SpecError is a spec that makes no sense or names a file that is not there.
type SpecError struct {
	Field string // "files[\"/etc/x\"]"; may be empty
	Err   error
}

func (e *SpecError) Error() string {
	if e.Field == "" {
		return "image: " + e.Err.Error()
	}
	return "image: " + e.Field + ": " + e.Err.Error()
}

func (e *SpecError) Unwrap() error { return e.Err }

func specErrorf(field, format string, args ...any) error {
	return &SpecError{Field: field, Err: fmt.Errorf(format, args...)}
}

// PackageError is a package that apt does not know or cannot install.
type PackageError struct {
	Image   string // the image's title
	Package string // may be empty if several are to blame together
	Reason  string // apt's own, in one line: "Unable to locate package nginxx"
}

func (e *PackageError) Error() string {
	var b strings.Builder
	b.WriteString("image")
	if e.Image != "" {
		b.WriteString(" " + e.Image)
	}
	if e.Package != "" {
		fmt.Fprintf(&b, ": package %q", e.Package)
	}
	return b.String() + ": " + e.Reason
}

// RunError is a run line that failed: the author of the spec has to look at it.
type RunError struct {
	Image  string
	Index  int // from 0
	Line   string
	Code   int
	Output string // the end of what it wrote
}

func (e *RunError) Error() string {
	how := fmt.Sprintf("failed with exit code %d", e.Code)
	if e.Code == killedCode {
		how += ": it " + wasKilled
	}
	return fmt.Sprintf("image %s: run[%d] %q %s%s", e.Image, e.Index, e.Line, how, indented(e.Output))
}

// killedCode is the exit code of what ended by SIGKILL, as a shell has it.
const killedCode = 128 + 9

const wasKilled = "was killed (SIGKILL), by hand or by the kernel for lack of memory"

// SpaceError is a cache without enough room.
type SpaceError struct {
	Path      string
	Need, Has int64 // bytes; Need is 0 if the space ran out on the way
	Err       error
}

func (e *SpaceError) Error() string {
	const mib = 1 << 20
	if e.Need == 0 {
		return fmt.Sprintf("image cache %s: no space left on device (%d MiB are free)", e.Path, e.Has/mib)
	}
	return fmt.Sprintf("image cache %s: not enough space: about %d MiB are needed, %d MiB are free", e.Path, e.Need/mib, e.Has/mib)
}

func (e *SpaceError) Unwrap() error { return e.Err }

// BuildError is a build that failed for a reason of the host's: the mirror is
// out of reach, a tool gave up.
type BuildError struct {
	Image  string // the title of what was built
	Phase  string // "installing packages"
	Reason string // the tools' own error lines
	Output string // the end of their output
	Err    error
}

func (e *BuildError) Error() string {
	msg := fmt.Sprintf("image %s: %s failed", e.Image, e.Phase)
	if e.Reason != "" {
		msg += ": " + e.Reason
	}
	if e.Err != nil {
		msg += " (" + e.Err.Error() + ")"
	}
	return msg + indented(e.Output)
}

func (e *BuildError) Unwrap() error { return e.Err }

func indented(text string) string {
	text = strings.TrimSpace(text)
	if text == "" {
		return ""
	}
	return "\n  " + strings.ReplaceAll(text, "\n", "\n  ")
}
