// Package atomicfile makes files that appear whole or not at all.
//
// Nothing is synced: after a crash of the host a file may be empty. What is
// written this way is a report, or can be made again.
package atomicfile

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
)

// A File is written beside the place where it will be.
type File struct {
	*os.File
	done bool
}

// Create makes a new file in dir, with the mode that the user's umask gives.
// os.CreateTemp's would be 0600: unreadable for the next stage of a CI job.
func Create(dir string) (*File, error) {
	f, err := os.OpenFile(temporary(dir), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return nil, err
	}
	return &File{File: f}, nil
}

// Commit closes the file and moves it to path, which is in the same file system.
// A file that is there is replaced. On error there is nothing new at path.
func (f *File) Commit(path string) error {
	defer f.Discard()
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	f.done = true
	return nil
}

// Discard closes and removes the file. It does nothing after a Commit.
func (f *File) Discard() error {
	if f.done {
		return nil
	}
	f.done = true
	f.Close() // an error of what is thrown away does not matter
	return os.Remove(f.Name())
}

// Symlink makes path a symbolic link to target, whatever was there before.
func Symlink(target, path string) error {
	tmp := temporary(filepath.Dir(path))
	if err := os.Symlink(target, tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}

func temporary(dir string) string { return filepath.Join(dir, ".new-"+rand.Text()[:8]) }
