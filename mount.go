package attest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/dustin/go-humanize/english"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/tree"
	"github.com/attest-vm/attest/internal/wire"
	"github.com/attest-vm/attest/internal/wire/tarfs"
)

// This file lays files of the host over a machine: MachineConfig.Files and Mount. They
// go through the agent, and only what has changed since the machine, or the snapshot
// that it goes on from, got them.

// laid is what of the host's files is in a guest, by their targets.
type laid map[string]laidTree

type laidTree struct {
	Tree  tree.Tree `json:"tree"`
	Blind bool      `json:"blind,omitempty"` // it is not known whether something in the guest has used them
}

// A laying is what has to be done for one overlay.
type laying struct {
	overlay
	dir     bool // it is a directory, or was one
	now     tree.Tree
	change  tree.Change
	touches []string // see tree.Change.Touches
	blind   bool
}

func newLaying(o overlay, now tree.Tree, old laidTree) laying {
	c := now.Since(old.Tree)
	return laying{
		overlay: o, dir: now["."].Mode.IsDir() || old.Tree["."].Mode.IsDir(),
		now: now, change: c, touches: c.Touches(old.Tree), blind: old.Blind,
	}
}

// layings are what has changed of a machine's files since it had what it has.
func (h *Host) layings(config MachineConfig, have laid) ([]laying, error) {
	var out []laying
	all := config.overlays()
	for i, o := range all {
		var inside []string
		for _, other := range all[i+1:] {
			if strings.HasPrefix(other.target, o.target+"/") {
				inside = append(inside, other.target)
			}
		}
		now, err := h.trees.list(o, inside)
		if err != nil {
			return nil, &FilesError{Machine: config.Name, Path: o.target, Source: o.path, Err: err, refused: true}
		}
		out = append(out, newLaying(o, now, have[o.target]))
	}
	for _, target := range slices.Sorted(maps.Keys(have)) {
		if !slices.ContainsFunc(all, func(o overlay) bool { return o.target == target }) { // it is declared no more
			out = append(out, newLaying(overlay{field: "mount", target: target}, nil, have[target]))
		}
	}
	return out, nil
}

// lay gives the guest what has changed on the host since it got its files. It does so
// once for each machine that starts for the first time or goes on from a snapshot: what a
// test has made of the files since is the test's.
func (r *run) lay(ctx context.Context) error {
	m := r.machine
	m.mu.Lock()
	have, todo := m.laid, m.unlaid
	m.mu.Unlock()
	if !todo || len(m.config.Files)+len(m.config.Mount)+len(have) == 0 {
		return nil
	}
	all, err := m.lab.host.layings(m.config, have)
	if err != nil {
		return err
	}
	now, stale := laid{}, []string{}
	var files tarfs.Stats
	removed := 0
	work := func(context.Context) error {
		for _, l := range all {
			done := laidTree{Tree: l.now, Blind: l.blind}
			if !l.change.Empty() {
				result, err := r.layOne(ctx, l)
				if err != nil {
					return err
				}
				files.Files += result.Files
				files.Bytes += result.Bytes
				removed += len(l.change.Clear) + len(l.change.Remove)
				if done.Blind = result.Blind || l.blind; l.blind {
					result.Used = names(l.touches)
				}
				for _, p := range result.Used {
					stale = append(stale, path.Join(l.target, string(p)))
				}
			}
			if l.now != nil {
				now[l.target] = done
			}
		}
		return nil
	}
	if slices.ContainsFunc(all, func(l laying) bool { return !l.change.Empty() }) {
		err = step(m.lab.ctx, m.Name(), "files", strings.Join(targets(all), ", "), work)
	} else {
		err = work(ctx)
	}
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.laid, m.unlaid, m.stale = now, false, stale
	m.mu.Unlock()
	m.tellFiles(have != nil, files, removed, stale)
	return nil
}

// targets are the paths in the guest whose files have changed.
func targets(all []laying) []string {
	var out []string
	for _, l := range all {
		if !l.change.Empty() {
			out = append(out, l.target)
		}
	}
	return out
}

// tellFiles says what has changed of the files of a machine that had them before.
func (m *Machine) tellFiles(before bool, files tarfs.Stats, removed int, stale []string) {
	if !before || files.Files+removed == 0 {
		return
	}
	text := fmt.Sprintf("%s of the host changed since the snapshot (%s)", english.Plural(files.Files+removed, "file", ""), humanize.IBytes(uint64(files.Bytes)))
	level := "info"
	if len(stale) > 0 {
		level = "warning"
		text += "; the guest had used " + some(stale) + " before, and what it started then goes on with what it had"
	}
	event.Publish(m.lab.ctx, event.Log{Machine: m.Name(), Level: level, Text: text})
}

// some names the first of many.
func some(list []string) string {
	const most = 3
	if len(list) <= most {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
}

// layOne lays one overlay.
func (r *run) layOne(ctx context.Context, l laying) (wire.LayResult, error) {
	var done wire.LayResult
	requests := l.requests()
	for i, q := range requests {
		result, err := r.guest.Lay(ctx, q.LayRequest, func(w io.Writer) (tarfs.Stats, error) { return l.write(w, q.stream) })
		for _, what := range result.Skipped {
			event.Publish(r.machine.lab.ctx, event.Log{Machine: r.machine.Name(), Level: "warning", Text: fmt.Sprintf("%s: not copied: %s", l.overlay, what)})
		}
		if err != nil {
			files := &FilesError{Machine: r.machine.Name(), Path: l.target, Source: l.path, Err: err}
			if op := (*guest.OpError)(nil); errors.As(err, &op) {
				files.Err, files.refused = errors.New(op.Message), true
			}
			return done, files
		}
		done.Files, done.Bytes, done.Blind = done.Files+result.Files, done.Bytes+result.Bytes, done.Blind || result.Blind
		for _, p := range result.Used {
			if slices.ContainsFunc(requests[i].Touched, func(asked []byte) bool { return bytes.Equal(asked, p) }) { // a guest can say anything
				done.Used = append(done.Used, p)
			}
		}
	}
	return done, nil
}

// write writes the tar stream of a request.
func (l laying) write(w io.Writer, content bool) (tarfs.Stats, error) {
	name := path.Base(l.target)
	switch {
	case !content || len(l.change.Write) == 0:
		return tarfs.WriteOnly(w, "/", name, nil, 0)
	case l.path == "":
		return tarfs.WriteContent(w, name, l.file.Content, l.now["."].Mode)
	}
	return tarfs.WriteOnly(w, l.path, name, l.change.Write, fs.FileMode(l.file.Mode))
}

// A layRequest is one of those that lay an overlay. One of them brings what is new.
type layRequest struct {
	wire.LayRequest
	stream bool
}

// maxRequest is how many bytes of names a request has at most: it has to fit into a
// frame, in which they are a third longer.
const maxRequest = wire.MaxPayload / 3

// requests are what the guest is asked for, mostly one. Of long lists there is one for
// each part, in the order in which a request is done.
func (l laying) requests() []layRequest {
	all := layRequest{l.request(), true}
	all.Touched, all.Clear, all.Remove, all.Modes = names(l.touches), names(l.change.Clear), names(l.change.Remove), l.modes()
	size := 0
	for _, list := range [][][]byte{all.Touched, all.Clear, all.Remove} {
		for _, name := range list {
			size += len(name) + nameCost
		}
	}
	for _, m := range all.Modes {
		size += len(m.Path) + nameCost
	}
	if size <= maxRequest {
		return []layRequest{all}
	}
	var out []layRequest
	for _, part := range []struct {
		list [][]byte
		of   func(*wire.LayRequest) *[][]byte
	}{
		{all.Touched, func(q *wire.LayRequest) *[][]byte { return &q.Touched }},
		{all.Clear, func(q *wire.LayRequest) *[][]byte { return &q.Clear }},
		{all.Remove, func(q *wire.LayRequest) *[][]byte { return &q.Remove }},
	} {
		split(part.list, func(name []byte) int { return len(name) }, func(list [][]byte) {
			q := l.request()
			*part.of(&q) = list
			out = append(out, layRequest{q, false})
		})
	}
	out = append(out, layRequest{l.request(), true})
	split(all.Modes, func(m wire.Mode) int { return len(m.Path) }, func(part []wire.Mode) {
		q := l.request()
		q.Modes = part
		out = append(out, layRequest{q, false})
	})
	return out
}

// nameCost is what a name takes in a request beside its bytes.
const nameCost = 24

// split calls do with parts of a list that fit into a request each.
func split[T any](list []T, size func(T) int, do func([]T)) {
	for len(list) > 0 {
		n, sum := 1, size(list[0])
		for n < len(list) && sum+size(list[n])+nameCost <= maxRequest {
			sum += size(list[n]) + nameCost
			n++
		}
		do(list[:n])
		list = list[n:]
	}
}

func (l laying) request() wire.LayRequest {
	return wire.LayRequest{Path: []byte(l.target), Tree: l.dir}
}

func (l laying) modes() []wire.Mode {
	var out []wire.Mode
	for _, p := range slices.Sorted(maps.Keys(l.change.Modes)) {
		out = append(out, wire.Mode{Path: []byte(p), Bits: uint32(l.change.Modes[p])})
	}
	return out
}

func names(paths []string) [][]byte {
	var out [][]byte
	for _, p := range paths {
		out = append(out, []byte(p))
	}
	return out
}
