package attest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

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

// An overlay is one entry of Files or Mount.
type overlay struct {
	field  string // "mount", for errors
	target string // in the guest
	path   string // on the host; empty: content
	file   File   // of Files
}

func (o overlay) String() string { return fmt.Sprintf("%s[%q]", o.field, o.target) }

// overlays are all of a machine, each before those that lie in it.
func (m *MachineConfig) overlays() []overlay {
	var out []overlay
	for target, path := range m.Mount {
		out = append(out, overlay{field: "mount", target: target, path: path})
	}
	for target, f := range m.Files {
		out = append(out, overlay{field: "files", target: target, path: f.Path, file: f})
	}
	slices.SortFunc(out, func(a, b overlay) int { return strings.Compare(a.target, b.target) })
	return out
}

// emptyAtBoot are the directories in which guests mount empty file systems.
var emptyAtBoot = regexp.MustCompile(`^/(dev|proc|run|sys|tmp)(/|$)`)

func (m *MachineConfig) normalizeOverlays() error {
	seen := map[string]bool{}
	for _, o := range m.overlays() {
		reason := ""
		switch {
		case !path.IsAbs(o.target) || path.Clean(o.target) != o.target || strings.ContainsRune(o.target, 0):
			reason = "want a clean absolute path in the guest"
		case o.target == "/":
			reason = "want a path below /, such as /opt/app"
		case emptyAtBoot.MatchString(o.target):
			reason = "the guest mounts an empty file system there when it boots; choose another place, such as below /opt or /etc"
		case seen[o.target]:
			reason = "it is in files, too"
		case o.field == "mount" && o.path == "":
			reason = "want the path of a file or a directory of the host"
		case o.file.Content != "" && o.file.Path != "":
			reason = "it has both content and path; leave out one of the two"
		case o.file.Mode > 0o7777:
			reason = fmt.Sprintf("mode %#o is not permission bits", o.file.Mode)
		}
		if reason != "" {
			return fmt.Errorf("%s: %s", o, reason)
		}
		seen[o.target] = true
	}
	return nil
}

// resolveOverlays makes the host's paths independent of where attest runs.
func (m *MachineConfig) resolveOverlays(dir string) error {
	abs := func(p string) (string, error) {
		if filepath.IsAbs(p) {
			return p, nil
		}
		return filepath.Abs(filepath.Join(dir, p))
	}
	m.Files, m.Mount = maps.Clone(m.Files), maps.Clone(m.Mount)
	for target, f := range m.Files {
		if f.Path == "" {
			continue
		}
		var err error
		if f.Path, err = abs(f.Path); err != nil {
			return err
		}
		m.Files[target] = f
	}
	for target, p := range m.Mount {
		p, err := abs(p)
		if err != nil {
			return err
		}
		m.Mount[target] = p
	}
	return nil
}

// checkOverlays refuses files that the host does not have.
func (m MachineConfig) checkOverlays() error {
	for _, o := range m.overlays() {
		if o.path == "" {
			continue
		}
		info, err := os.Stat(o.path)
		reason := ""
		switch {
		case errors.Is(err, fs.ErrNotExist):
			reason = "no such file or directory"
		case err != nil:
			reason = errors.Unwrap(err).Error()
		case o.field == "files" && info.IsDir():
			reason = "a directory; mount takes directories"
		case !info.Mode().IsRegular() && !info.IsDir():
			reason = "neither a file nor a directory"
		}
		if reason != "" {
			return &ConfigError{fmt.Sprintf("machine %q", m.Name), fmt.Sprintf("%s: %s: %s", o, o.path, reason)}
		}
	}
	return nil
}

// laid is what of the host's files is in a guest, by their targets.
type laid map[string]laidTree

type laidTree struct {
	Tree  tree.Tree `json:"tree"`
	Blind bool      `json:"blind,omitempty"` // it is not known whether something in the guest has used them
}

// trees are the lists of the host's files that were made last, so that the labs of a
// host read a file once.
type trees struct {
	mu   sync.Mutex
	last map[string]tree.Tree
}

// scan lists a file or a tree of the host.
func (t *trees) scan(path string) (tree.Tree, error) {
	t.mu.Lock()
	before := t.last[path]
	t.mu.Unlock()
	now, err := tree.Scan(path, before)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last == nil {
		t.last = map[string]tree.Tree{}
	}
	t.last[path] = now
	return now, nil
}

// list is what an overlay has now. inside are the targets that lie in it and have
// overlays of their own.
func (t *trees) list(o overlay, inside []string) (tree.Tree, error) {
	if o.path == "" {
		return tree.OfContent(o.file.Content, fs.FileMode(o.file.mode(0o644))), nil
	}
	now, err := t.scan(o.path)
	if err != nil {
		return nil, err
	}
	if e, ok := now["."]; ok && e.Mode.IsRegular() && o.file.Mode != 0 {
		e.Mode = fs.FileMode(o.file.Mode).Perm()
		now = maps.Clone(now)
		now["."] = e
	}
	for _, target := range inside {
		now = now.Without(strings.TrimPrefix(target, o.target+"/"))
	}
	return now, nil
}

func (f File) mode(otherwise uint32) uint32 {
	if f.Mode != 0 {
		return f.Mode
	}
	return otherwise
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

// refile gives the labs that are made of the snapshot the files of these machines.
func (s *Snapshot) refile(machines []MachineConfig) error {
	for _, given := range machines {
		if err := given.normalizeOverlays(); err != nil {
			return &ConfigError{fmt.Sprintf("machine %q", given.Name), err.Error()}
		}
		if err := given.resolveOverlays(s.config.SourceDir); err != nil {
			return err
		}
		for _, list := range []*[]MachineConfig{&s.config.Machines, &s.config.created} {
			*list = slices.Clone(*list)
			for i := range *list {
				if m := &(*list)[i]; m.Name == given.Name {
					m.Files, m.Mount = given.Files, given.Mount
				}
			}
		}
	}
	return nil
}

// asSaved leaves the files of all machines that are not given as they were saved: the
// host may be another one, and a person wants to see what the test saw.
func (s *Snapshot) asSaved(given []MachineConfig) {
	for _, list := range [][]MachineConfig{s.config.Machines, s.config.created} {
		for i := range list {
			m := &list[i]
			if !slices.ContainsFunc(given, func(g MachineConfig) bool { return g.Name == m.Name }) {
				m.Files, m.Mount, s.machines[m.Name].laid = nil, nil, nil
			}
		}
	}
}

// refresh is access.Refresh.
func (s *Snapshot) refresh(ctx context.Context, machines []MachineConfig) (used []string, err error) {
	if err := errors.Join(s.probe.close(), s.refile(machines)); err != nil {
		return nil, err
	}
	ask := false
	for _, config := range slices.Concat(s.config.Machines, s.config.created) {
		state := s.machines[config.Name]
		if state == nil || state.laid == nil {
			continue
		}
		all, err := s.host.layings(config, state.laid)
		if err != nil {
			return nil, err
		}
		for _, l := range all {
			switch {
			case len(l.touches) == 0:
			case state.state == nil: // it is off, and cannot be asked
				for _, p := range l.touches {
					used = append(used, config.Name+": "+path.Join(l.target, p))
				}
			default:
				ask = true
			}
		}
	}
	if !ask || len(used) > 0 {
		return used, nil
	}
	// The fork is the first one that somebody asks for, if it is of use.
	f := &forward{}
	var bus event.Bus
	bus.Subscribe(f.record)
	lab, err := s.Fork(event.WithBus(ctx, &bus))
	if err != nil {
		return nil, err
	}
	all := lab.Machines()
	err = each(all, func(_ int, m *Machine) error {
		if r := m.running(); r != nil {
			return r.awaitReady(ctx)
		}
		return nil
	})
	for _, m := range all {
		m.mu.Lock()
		for _, p := range m.stale {
			used = append(used, m.Name()+": "+p)
		}
		m.mu.Unlock()
	}
	if err != nil || len(used) > 0 {
		return used, errors.Join(err, lab.Close())
	}
	s.probe.mu.Lock()
	defer s.probe.mu.Unlock()
	s.probe.lab, s.probe.forward = lab, f
	return nil, nil
}

// A probe is a fork of a snapshot that was made to look at it, and that nobody has yet.
type probe struct {
	mu      sync.Mutex
	lab     *Lab
	forward *forward
}

// take returns the fork, whose events go to ctx from now on; nil if there is none.
func (p *probe) take(ctx context.Context) *Lab {
	p.mu.Lock()
	lab := p.lab
	p.lab = nil
	p.mu.Unlock()
	if lab != nil {
		p.forward.to(ctx)
	}
	return lab
}

func (p *probe) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lab == nil {
		return nil
	}
	lab := p.lab
	p.lab = nil
	return lab.Close()
}

// forward keeps the events of a lab until it is known whose it is.
type forward struct {
	mu   sync.Mutex
	kept []event.Record
	ctx  context.Context
}

func (f *forward) record(r event.Record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ctx == nil {
		f.kept = append(f.kept, r)
		return
	}
	f.publish(r)
}

func (f *forward) to(ctx context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ctx = ctx
	for _, r := range f.kept {
		f.publish(r)
	}
	f.kept = nil
}

// publish gives an event of no test the test's scope.
func (f *forward) publish(r event.Record) {
	ctx := f.ctx
	if r.Scope.Test != "" {
		ctx = event.WithScope(ctx, r.Scope)
	}
	event.Publish(ctx, r.Event)
}
