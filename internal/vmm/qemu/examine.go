package qemu

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/attest-vm/attest/internal/vmm"
)

// An examination is what a QEMU that a start command has started was found to be,
// before its vCPUs run.
type examination struct {
	scriptState
	reason string // why it cannot be saved; empty: it can, as far as anybody knows
	doubt  bool   // of the reason: it depends on what the guest does
}

// hopeless says that nothing in the guest could change it.
func (e examination) hopeless() bool { return e.reason != "" && !e.doubt }

// scriptState is what a saved machine keeps of it.
type scriptState struct {
	Memory int64 `json:"memory"` // bytes
	// Shared says that clones can share the memory that they do not write to:
	// no other memory of the machine changes.
	Shared bool `json:"shared"`
	// Print is what must be the same: the QEMU, its command line without what
	// differs from one lab to another, and the files that it names.
	Print string `json:"print"`
}

// examine looks at the QEMU that runs, which has got the arguments ours.
func (m *scripted) examine(ctx context.Context, ours []string) (examination, error) {
	var e examination
	pid := m.process.Pid()
	argv, found := without(arguments(pid), ours)
	if !found || !isQEMU(pid) {
		e.reason = "the start command does not end in exec, so QEMU is not the process that was started"
		return e, nil
	}
	var size struct {
		Base    int64 `json:"base-memory"`
		Plugged int64 `json:"plugged-memory"`
	}
	var nodes []blockNode
	var blocks string
	err := errors.Join(
		m.monitor.Do(ctx, "query-memory-size-summary", nil, &size),
		m.monitor.Do(ctx, "query-named-block-nodes", map[string]any{"flat": true}, &nodes),
		m.monitor.Do(ctx, "human-monitor-command", map[string]string{"command-line": "info ramblock"}, &blocks),
	)
	if err != nil {
		return e, m.ended(ctx, err)
	}
	e.Memory, e.Shared = size.Base, sharesMemory(blocks)
	dir, err := filepath.EvalSymlinks(m.config.Dir)
	if err != nil {
		return e, err
	}
	files, reason := stateDisks(nodes, dir)
	if e.reason, e.doubt = unsavable(argv); reason != "" && !e.hopeless() {
		e.reason, e.doubt = reason, false
	}
	if size.Plugged != 0 && e.reason == "" {
		e.reason = "it has memory that can be unplugged"
	}
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return e, err
	}
	places := map[string]string{m.config.Dir: "$STATE", dir: "$STATE"}
	for _, v := range m.env {
		if name, value, _ := strings.Cut(v, "="); filepath.IsAbs(value) {
			places[value] = "$" + name
		}
	}
	files = append(files, namedFiles(argv, m.config.Dir)...)
	lines := append([]string{program, m.monitor.Version().String()}, normalise(argv, places)...)
	e.Print = strings.Join(append(lines, stamps(append(files, program))...), "\n")
	return e, nil
}

// without is a command line without a part of it, wherever that is.
func without(argv, part []string) (rest []string, found bool) {
	for i := 0; i+len(part) <= len(argv); i++ {
		if slices.Equal(argv[i:i+len(part)], part) {
			return append(slices.Clone(argv[:i]), argv[i+len(part):]...), true
		}
	}
	return argv, false
}

// normalise replaces places that are others in each lab, the longest first.
func normalise(argv []string, places map[string]string) []string {
	names := slices.SortedFunc(maps.Keys(places), func(a, b string) int { return len(b) - len(a) })
	var pairs []string
	for _, name := range names {
		pairs = append(pairs, name, places[name])
	}
	r := strings.NewReplacer(pairs...)
	out := make([]string, len(argv))
	for i, a := range argv {
		out[i] = r.Replace(a)
	}
	return out
}

// A hindrance is something on a command line that prevents a snapshot.
type hindrance struct {
	pattern *regexp.Regexp
	reason  string
	doubt   bool
}

var hindrances = []hindrance{
	{regexp.MustCompile(`(?m)^--?snapshot$`), "with -snapshot its disks are files without a name", false},
	{regexp.MustCompile(`vhost-user|(?m)^--?object\n.*virtiofs`), "a vhost-user device (such as virtiofs) keeps its state in another program", false},
	{regexp.MustCompile(`vhost-vsock`), "a vhost-vsock device has a CID that only one machine of the host can have", false},
	{regexp.MustCompile(`vfio|usb-host`), "it uses a device of the host", false},
	{regexp.MustCompile(`(?m)^--?tpmdev$`), "a TPM keeps its state in another program", false},
	{regexp.MustCompile(`(?m)^--?rtc\n.*base=[0-9]`), "its clock is not the host's (-rtc base=)", false},
	{regexp.MustCompile(`(?m)^--?(loadvm|incoming)$`), "it starts from a state of its own (-loadvm, -incoming)", false},
	{regexp.MustCompile(`(?m)^--?virtfs$|virtio-9p`), "QEMU cannot save a guest that has mounted a 9p file system; use an image of the same files instead (NixOS: virtualisation.useNixStoreImage)", true},
}

// unsavable returns what of a command line prevents a snapshot.
func unsavable(argv []string) (reason string, doubt bool) {
	line := strings.Join(argv[min(1, len(argv)):], "\n")
	for _, h := range hindrances {
		if h.pattern.MatchString(line) {
			return h.reason, h.doubt
		}
	}
	return "", false
}

// A blockNode is an entry of query-named-block-nodes (QEMU qapi/block-core.json).
type blockNode struct {
	Driver   string `json:"drv"`
	ReadOnly bool   `json:"ro"`
	File     string `json:"file"`
	Image    struct {
		Backing string `json:"backing-filename"` // as the image names it
	} `json:"image"`
}

// protocols are the drivers below all others. That of a file is known here.
var protocols = regexp.MustCompile(`^(blkio|cloop|curl|ftps?|gluster|host_.*|https?|io_uring|iscsi|luks|nbd|nfs|nvme|rbd|replication|ssh|vhdx-remote|virtio-blk-.*|vvfat)$`)

// stateDisks looks at the files of disks. Those in the machine's directory are
// saved with it; others must be read-only, and are returned.
func stateDisks(nodes []blockNode, dir string) (outside []string, reason string) {
	for _, n := range nodes {
		if protocols.MatchString(n.Driver) && !n.ReadOnly || n.Driver == "vvfat" {
			return nil, fmt.Sprintf("disk %s (%s) is not a regular file", n.File, n.Driver)
		}
		if within(n.Image.Backing, dir) {
			return nil, fmt.Sprintf("disk %s refers to a file in the state directory by its absolute path (%s), which differs in each lab; make the image with a relative path", n.File, n.Image.Backing)
		}
		if n.Driver != "file" {
			continue
		}
		path := n.File
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		path, err := filepath.EvalSymlinks(path)
		switch {
		case err != nil:
			return nil, fmt.Sprintf("disk %s is a file without a name (-snapshot?)", n.File)
		case within(path, dir):
		case !n.ReadOnly:
			return nil, fmt.Sprintf("disk %s is writable and not in the state directory ($NIX_DISK_IMAGE, $TMPDIR)", path)
		default:
			outside = append(outside, path)
		}
	}
	return outside, ""
}

func within(path, dir string) bool {
	return filepath.IsAbs(path) && (path == dir || strings.HasPrefix(filepath.Clean(path), dir+"/"))
}

// filePath is something on a command line that may be the path of a file.
var filePath = regexp.MustCompile(`/[^,=:\s]+`)

// namedFiles are the files outside of dir that a command line names.
func namedFiles(argv []string, dir string) []string {
	var out []string
	for _, a := range argv {
		for _, path := range filePath.FindAllString(a, -1) {
			if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && !within(path, dir) {
				out = append(out, path)
			}
		}
	}
	return out
}

// readPath is something in a script that may be the path of a file which the script reads. What
// follows > is written.
var readPath = regexp.MustCompile(`(>\s*["']?)?(/[^\s"'` + "`" + `\\$*?:;,=&|<>(){}[\]]+)`)

// readFiles are the files outside of dir that the scripts among files name: of what they make disks,
// and what they source. Another content of these is another machine.
func readFiles(files []string, dir string) []string {
	var out []string
	for _, script := range files {
		if st, err := os.Stat(script); err != nil || st.Size() >= maxScript {
			continue
		}
		content, err := os.ReadFile(script)
		if err != nil || !utf8.Valid(content) {
			continue
		}
		for _, m := range readPath.FindAllSubmatch(content, -1) {
			path := filepath.Clean(string(m[2]))
			if len(m[1]) > 0 || within(path, dir) || within(path, "/proc") || within(path, "/sys") {
				continue
			}
			if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
				out = append(out, path)
			}
		}
	}
	return out
}

// stamps say which files these are: a script by its content.
func stamps(files []string) []string {
	slices.Sort(files)
	var out []string
	for _, path := range slices.Compact(files) {
		st, err := os.Stat(path)
		if err != nil {
			continue
		}
		which := fmt.Sprintf("%d bytes of %d", st.Size(), st.ModTime().UnixNano())
		if st.Size() < maxScript {
			if content, err := os.ReadFile(path); err == nil {
				which = fmt.Sprintf("%x", sha256.Sum256(content))
			}
		}
		out = append(out, path+" "+which)
	}
	return out
}

const maxScript = 1 << 20

// constant are the memories, besides the guest's own, that are not written to after
// the firmware has run.
var constant = regexp.MustCompile(`^(pc\.ram|attest-ram|pc\.bios|pc\.rom|/rom@\S+|\S+\.rom)$`)

// sharesMemory reads a table of QEMU's. Its first column has the memories' names.
func sharesMemory(blocks string) bool {
	lines := strings.Split(strings.ReplaceAll(strings.TrimSpace(blocks), "\r", ""), "\n")
	for _, line := range lines[1:] {
		if fields := strings.Fields(line); len(fields) > 0 && !constant.MatchString(fields[0]) {
			return false
		}
	}
	return len(lines) > 1
}

// lastLine is the last line that a VMM said before it failed, or the error.
func lastLine(err error) string {
	var start *vmm.StartError
	if !errors.As(err, &start) {
		return err.Error()
	}
	if start.Output == "" {
		return start.Err.Error()
	}
	return start.Output[strings.LastIndexByte(start.Output, '\n')+1:]
}

// What start commands start is remembered, so that a machine is examined once.

func (b *backend) recall(key string) (examination, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e, ok := b.examined[key]
	return e, ok
}

func (b *backend) remember(key string, e examination) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.examined == nil {
		b.examined = map[string]examination{}
	}
	b.examined[key] = e
}

func (b *backend) forget(key string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.examined, key)
}
