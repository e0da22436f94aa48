package attest

import (
	"context"
	"os"
	"os/exec"

	"github.com/attest-vm/attest/internal/screen/ocr"
	"github.com/attest-vm/attest/internal/supervise"
)

// This file runs what reads screens.

// canRead returns an error if this host has not what it takes to read a screen.
func canRead(machine, operation string) error {
	if _, err := exec.LookPath(ocr.Program); err != nil {
		return &MissingProgramError{machine, operation, ocr.Program, "not found on PATH (" + os.Getenv("PATH") + ")", "install it (Debian: apt-get install " + ocr.Package + "; Nix: tesseract)"}
	}
	return nil
}

// tesseract runs tesseract. One thread: its variants run at the same time.
func (l *Lab) tesseract(ctx context.Context, input []byte, args ...string) ([]byte, error) {
	return l.runProgram(ctx, supervise.Command{
		Path: ocr.Program, Args: append([]string{ocr.Program}, args...), Env: append(os.Environ(), "OMP_THREAD_LIMIT=1", "LC_ALL=C"),
	}, input)
}
