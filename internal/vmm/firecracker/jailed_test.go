package firecracker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/attest-vm/attest/internal/doctor"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/guest"
	"github.com/attest-vm/attest/internal/vmm"
	"github.com/attest-vm/attest/internal/vmm/firecracker/fake"
	"github.com/attest-vm/attest/internal/vmm/firecracker/jail"
	"github.com/attest-vm/attest/internal/vmm/microvm/contract"
)

// withJailer installs a fake Firecracker with its jailer, and returns the options of a machine in
// a jail. Without root, or as one that may do little, such a machine is refused, and that is all
// there is to test.
func withJailer(t *testing.T) (options json.RawMessage, root bool) {
	t.Helper()
	fake.Install(t, fake.Options{Program: true})
	options = json.RawMessage(fmt.Sprintf(`{"jailer_bin": %q}`, fake.InstallJailer(t, fake.JailerOptions{})))
	why := jail.Try()
	if why == nil {
		return options, true
	}
	if uid := os.Geteuid(); uid != 0 && why.Error() != fmt.Sprintf("this is uid %d", uid) {
		t.Errorf("got %v", why)
	}
	err := check(vmm.Config{Name: "m", Boot: &vmm.Hardware{Options: options}})
	want := fmt.Sprintf("m: the jailer is not supported by backend firecracker: it needs root, who may make device nodes and change the root directory (%v); run attest as root, or leave jailer_bin out: attest confines", why)
	var unsupported *vmm.UnsupportedError
	if !errors.As(err, &unsupported) || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
	return nil, false
}

// In a jail a machine does what it does without one.
func TestContractInJail(t *testing.T) {
	options, root := withJailer(t)
	if !root {
		return
	}
	contract.Subject{
		New: func() vmm.Backend { return newBackend() },
		Install: func(t *testing.T, o contract.Options) {
			fake.Install(t, fake.Options{Program: true, NoSocket: o.NoSocket, Manners: o.Manners})
		},
		Cmdline: "console=ttyS0 reboot=k attest.vsock=1 attest.disks=attest-l0,attest-rw pci=off attest.root=layers:1",
		Log:     "Running Firecracker", Options: options, Jailed: true,
	}.Test(t)
}

func jailRig(t *testing.T) (r *contract.Rig, root bool) {
	t.Helper()
	options, root := withJailer(t)
	if !root {
		return nil, false
	}
	r = contract.NewRig(t, newBackend())
	r.Options = options
	return r, true
}

// says runs a script in the fake's guest, which has the rights of the process.
func says(t *testing.T, r *contract.Rig, b *contract.Box, script string) string {
	t.Helper()
	res, err := b.Run(r.Ctx, guest.Command{Script: script, Limit: 1 << 20})
	if err != nil || res.ExitCode != 0 {
		t.Fatalf("%s: exit code %d, %v: %s%s", script, res.ExitCode, err, res.Stdout, res.Stderr)
	}
	return strings.TrimSpace(string(res.Stdout))
}

// ownership is whom files belong to, and who may do what with them.
func ownership(t *testing.T, paths ...string) string {
	t.Helper()
	out, err := exec.Command("stat", append([]string{"-c", "%n %u %g %a"}, paths...)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// Whoever has taken over a Firecracker in a jail is nobody there, and finds the machine's files alone.
// They belong to whom they did, but for the disk that the machine writes to.
func TestWhatAJailShows(t *testing.T) {
	r, root := jailRig(t)
	if !root {
		return
	}
	pmem := r.File("pmem")
	for path, mode := range map[string]fs.FileMode{r.File("secret"): 0o644, pmem: 0o600} {
		if err := os.WriteFile(path, []byte("content\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	shown := []string{r.File("vmlinux"), r.File("initrd"), r.File("base"), pmem}
	before := ownership(t, shown...)
	c := r.Config("m")
	options := map[string]any{"jailer_uid": 4242, "jailer_gid": 4343, "pmem_image_paths": []string{pmem}}
	if err := json.Unmarshal(r.Options, &options); err != nil {
		t.Fatal(err)
	}
	var err error
	if c.Boot.(*vmm.Hardware).Options, err = json.Marshal(options); err != nil {
		t.Fatal(err)
	}
	b := r.Start(c)
	for script, want := range map[string]string{
		"echo $UID $(id -g) $(id -G)":       "4242 4343 4343",
		"cat d0 pmem0":                      "basecontent",
		"echo written >> d1; cat d1":        "diskwritten",
		"[ ! -w d0 ] && [ ! -w kernel ]":    "",
		"[ ! -e " + r.File("secret") + " ]": "",
		"echo x > /new; rm /new":            "",
		"cd /; for f in *; do case $f in (bin|lib|lib64|usr) ;; (*) echo $f ;; esac; done":// but for what the fake's guest needs
		"api.sock d0 d1 dev firecracker firecracker.pid initrd kernel log memory pmem0 run v.sock",
		"cd /dev; echo *": "kvm net null urandom",
	} {
		if got := strings.ReplaceAll(says(t, r, b, script), "\n", " "); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	if after := ownership(t, shown...); after != before {
		t.Errorf("before:\n%safter:\n%s", before, after)
	}
	if got := ownership(t, r.File("disk-m")); got != r.File("disk-m")+" 4242 4343 600\n" {
		t.Errorf("the disk: %s", got)
	}
	// A device node or a mount would outlive a kill of attest.
	err = filepath.WalkDir(b.Dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type()&fs.ModeDevice != 0 {
			t.Errorf("%s is a device node", path)
		}
		return err
	})
	mounts, mountsErr := os.ReadFile("/proc/self/mountinfo")
	if err != nil || mountsErr != nil || strings.Contains(string(mounts), b.Dir) {
		t.Errorf("%v, %v, mounts:\n%s", err, mountsErr, mounts)
	}
}

// A Firecracker in a jail that somebody kills ends its machine, as one without a jail.
func TestKilledInJail(t *testing.T) {
	r, root := jailRig(t)
	if !root {
		return
	}
	b := r.Start(r.Config("m"))
	b.Runs(r.Ctx)
	// The number of the process is in the jail; outside, it is the child of its namespace's first.
	found := children(t, b)
	if err := syscall.Kill(found, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.Exits(r.Ctx, vmm.Killed)
	if got := b.Exit().Detail; !strings.Contains(got, "firecracker was killed by SIGKILL") {
		t.Errorf("got %q", got)
	}
}

// children is the process that was executed as /firecracker in the jail of a machine.
func children(t *testing.T, b *contract.Box) int {
	t.Helper()
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range all {
		line, _ := os.ReadFile(path)
		if !strings.HasPrefix(string(line), "/firecracker\x00--id\x00") {
			continue
		}
		var pid int
		fmt.Sscanf(path, "/proc/%d", &pid)
		theirs, err := os.Stat(fmt.Sprintf("/proc/%d/root", pid))
		if ours, ourErr := os.Stat(filepath.Join(b.Dir, "vmm")); err == nil && ourErr == nil && os.SameFile(theirs, ours) {
			return pid
		}
	}
	t.Fatal("it has no process in a jail")
	return 0
}

// What was saved in a jail goes on without one, and the other way round. Clones in jails have the
// memory itself, if it was saved in one or is a file of the host.
func TestSavedAcrossJails(t *testing.T) {
	r, root := jailRig(t)
	if !root {
		return
	}
	free := func(name string) vmm.Config {
		c := r.Config(name)
		c.Boot.(*vmm.Hardware).Options = nil
		return c
	}
	goesOn := func(c vmm.Config, state *vmm.State) *contract.Box {
		t.Helper()
		c.Restore = state
		b := r.Start(c)
		b.Runs(r.Ctx)
		return b
	}
	inode := func(f *os.File) string {
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(st.Sys().(*syscall.Stat_t).Ino)
	}

	jailed := r.Start(r.Config("jailed"))
	jailed.Runs(r.Ctx)
	memory, err := jailed.VM.(vmm.MemoryMaker).MemoryFile(r.Ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	state := r.SaveTo(jailed, memory)
	for _, name := range []string{"one", "another"} {
		b := goesOn(r.Config(name), state)
		if got := says(t, r, b, "stat -c %i from; [ ! -w from ] && echo read-only"); got != inode(memory)+"\nread-only" {
			t.Errorf("%s: the memory is %q, want that of inode %s", name, got, inode(memory))
		}
	}
	goesOn(free("out"), state)

	out := r.Start(free("free"))
	out.Runs(r.Ctx)
	if f, err := out.VM.(vmm.MemoryMaker).MemoryFile(r.Ctx); f != nil || err != nil {
		t.Errorf("a machine without a jail wants a file of its own kind: %v, %v", f, err)
	}
	goesOn(r.Config("in"), r.Save(out))

	saved, err := os.OpenFile(r.File("saved"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer saved.Close()
	state = r.SaveTo(out, saved)
	before := ownership(t, saved.Name())
	goesOn(r.Config("from a file"), state)
	if after := ownership(t, saved.Name()); after != before {
		t.Errorf("it was %s, and is %s", before, after)
	}
}

// Whatever is wrong with a jail is one error that says what.
func TestJailFails(t *testing.T) {
	r, root := jailRig(t)
	if !root {
		return
	}
	c := r.Config("m")
	c.Boot.(*vmm.Hardware).Vmlinux = r.File("none")
	r.FailsToStart(c, "m: firecracker did not start: its process ended: exit status 1\nstat "+r.File("none")+": no such file or directory")
	if err := os.Link(r.File("disk-m"), r.File("other")); err != nil {
		t.Fatal(err)
	}
	c = r.Config("m")
	r.FailsToStart(c, "the disk "+r.File("disk-m")+" has 2 names, and is not the machine's alone")
}

func TestCheckJailer(t *testing.T) {
	if _, root := withJailer(t); !root {
		return
	}
	dir := t.TempDir()
	unexecutable := filepath.Join(dir, "unexecutable")
	if err := os.WriteFile(unexecutable, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, options, version, want string
		status                       event.Status
	}{
		{"missing", `"jailer_bin": "/nonexistent/jailer"`, "", "jailer: exec: \"/nonexistent/jailer\": stat /nonexistent/jailer: no such file or directory; name the jailer that was released with this Firecracker", event.Infra},
		{"not on PATH", `"jailer_bin": "jailer-of-nobody"`, "", `exec: "jailer-of-nobody": executable file not found in $PATH; name the jailer`, event.Infra},
		{"not executable", `"jailer_bin": "` + unexecutable + `"`, "", "permission denied; name the jailer", event.Infra},
		{"another program", `"jailer_bin": "/bin/true"`, "", "/bin/true: no version in the output of --version", event.Infra},
		{"another version", `"jailer_bin": "JAILER"`, "1.16.1", "it is version 1.16.1, and ", event.Infra},
		{"root", `"jailer_bin": "JAILER", "jailer_uid": 0`, "", "jailer_uid=0: want a number from 1 to 4294967294; with root's the jail would not hold", event.Invalid},
		{"too much", `"jailer_bin": "JAILER", "jailer_gid": 4294967295`, "", "jailer_gid=4294967295: want a number from 1", event.Invalid},
		{"without a jailer", `"jailer_uid": 1000`, "", "jailer_uid=1000: there is no jailer_bin", event.Invalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := fake.InstallJailer(t, fake.JailerOptions{Version: tt.version})
			err := check(vmm.Config{Name: "m", Boot: &vmm.Hardware{Options: json.RawMessage("{" + strings.ReplaceAll(tt.options, "JAILER", path) + "}")}})
			var status interface{ Status() event.Status }
			if !errors.As(err, &status) || status.Status() != tt.status || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q (%s)", err, tt.want, tt.status)
			}
		})
	}
}

// attest doctor shows a jailer that there is, and whether machines can be in its jail.
func TestExamineJailer(t *testing.T) {
	fake.Install(t, fake.Options{})
	look := func(version string) (found []doctor.Finding) {
		t.Helper()
		path := fake.InstallJailer(t, fake.JailerOptions{Version: version})
		t.Setenv("PATH", filepath.Dir(path)+":/usr/bin:/bin")
		for _, f := range newBackend().Examine(t.Context()).Findings {
			if f.Name == "jailer" {
				found = append(found, f)
			}
		}
		return found
	}
	if f := look(""); len(f) != 1 || f[0].OK != (jail.Try() == nil) || !strings.Contains(f[0].Detail, "jailer, version 1.17.0") {
		t.Errorf("got %+v", f)
	}
	if f := look("1.7.0"); len(f) != 1 || f[0].OK || !strings.Contains(f[0].Detail, "it is version 1.7.0, and ") || f[0].Remedy == "" {
		t.Errorf("got %+v", f)
	}
}
