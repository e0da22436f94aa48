package agent

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/attest-vm/attest/internal/wire"
	"github.com/attest-vm/attest/internal/wire/tarfs"
)

func copyResult(st tarfs.Stats) wire.CopyResult {
	return wire.CopyResult{Files: st.Files, Bytes: st.Bytes, Skipped: st.Skipped}
}

// putTar creates what the stream brings at dst: inside of it, if it is a
// directory that exists, and otherwise as dst, whose parents are made.
func putTar(stream *wire.Stream, dst string) (any, error) {
	if !filepath.IsAbs(dst) {
		return nil, errorf(wire.KindInvalid, "%q is not an absolute path", dst)
	}
	dir, name := filepath.Dir(filepath.Clean(dst)), filepath.Base(dst)
	if real, err := filepath.EvalSymlinks(dst); err == nil {
		if fi, err := os.Stat(real); err == nil && fi.IsDir() {
			dir, name = real, ""
		} else {
			dir, name = filepath.Split(real)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	in := stream.Reader(wire.Stdin)
	st, err := tarfs.Extract(in, root, name, 0)
	if err == nil {
		_, err = io.Copy(io.Discard, in) // the padding behind the last entry
	}
	return copyResult(st), err
}

// getTar sends src.
func getTar(stream *wire.Stream, src string) (any, error) {
	if !filepath.IsAbs(src) {
		return nil, errorf(wire.KindInvalid, "%q is not an absolute path", src)
	}
	name := filepath.Base(src)
	if name == "/" {
		name = "root"
	}
	st, err := tarfs.Write(stream.Writer(wire.Stdout), src, name)
	return copyResult(st), err
}
