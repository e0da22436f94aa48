package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attest-vm/attest"
)

// small is a machine of which many fit on a host.
func small(name string) attest.MachineConfig {
	return attest.MachineConfig{Name: name, Image: attest.Debian{}, Memory: 256}
}

// warm reports whether machines start from snapshots in this run of the tests.
func warm() bool { return os.Getenv(attest.BootEnv) != string(attest.BootCold) }

// TestWarmStart looks at machines that were restored. They are as those that have
// booted, which it passes on, too.
func TestWarmStart(t *testing.T) {
	t.Parallel()
	lab := attest.New(t, small("one"), small("two"), small("never"))
	one, two := lab.Machine("one"), lab.Machine("two")
	one.Start()
	two.Start()
	for i, m := range []*attest.TestMachine{one, two} {
		m.WaitForConsoleText("Reached target multi-user.target") // of the boot that was saved, too
		m.WaitForUnit("multi-user.target")
		v4 := fmt.Sprintf("192.168.1.%d", i+2) // never has the first
		for script, want := range map[string]string{
			"hostname; cat /etc/hostname":                                          m.Name() + "\n" + m.Name(),
			"cat /sys/class/net/eth1/address":                                      fmt.Sprintf("52:54:00:12:01:%02x", i+2),
			"ip -o -4 addr show eth1 | tr -s ' ' | cut -d' ' -f4":                  v4 + "/24",
			"ip -o addr show eth1 scope global | wc -l":                            "2",
			"getent hosts two | grep -c :":                                         "1",
			"grep -c 52:54:00:12:00 /sys/class/net/*/address || :":                 "/sys/class/net/eth1/address:0\n/sys/class/net/lo/address:0",
			"systemctl is-system-running --wait":                                   "running",
			"journalctl -b | grep -c 'Reached target multi-user'":                  "1",
			"logger warm; journalctl --sync; journalctl | grep -c ' root.*: warm'": "1",
		} {
			if got := strings.TrimSpace(m.Succeed(script)); got != want {
				t.Errorf("%s: %s: got %q, want %q", m.Name(), script, got, want)
			}
		}
		checkClock(t, m.Machine)
	}
	one.Succeed("ping -c1 two")
	// Each has booted by itself, so also the boot's ID is its own.
	for _, source := range append([]string{"cat /etc/machine-id", "cat /proc/sys/kernel/random/boot_id"}, randomSources...) {
		if a, b := one.Succeed(source), two.Succeed(source); a == b {
			t.Errorf("%s is the same on both: %s", source, a)
		}
	}
	id := one.Succeed("cat /etc/machine-id; echo kept > /root/kept; sync")
	one.Reboot()
	if got := one.Succeed("cat /etc/machine-id; grep -q kept /root/kept; cat /sys/class/net/eth1/address"); got != id+"52:54:00:12:01:02\n" {
		t.Errorf("after a boot: %q, before: %q", got, id)
	}
	one.Succeed("ping -c1 two")
}

// randomSources are ways to a random number: the kernel's, and what takes it from there.
var randomSources = []string{
	"cat /proc/sys/kernel/random/uuid",
	"head -c16 /dev/urandom | base64",
	"perl -e 'syscall(318, $b = \"\\0\" x 16, 16, 0); print unpack(\"H*\", $b)'", // getrandom(2) of x86-64
	"systemd-id128 new",
	"mcookie",
}

// checkClock compares the guest's clock with the host's.
func checkClock(t *testing.T, m *attest.Machine) {
	t.Helper()
	const allowed = 100 * time.Millisecond
	var off, trip time.Duration
	for range 20 { // until the answer is quick enough to tell
		before := time.Now()
		out, err := m.Succeed(t.Context(), "echo $EPOCHREALTIME")
		if err != nil {
			t.Fatal(err)
		}
		trip = time.Since(before)
		seconds, micro, _ := strings.Cut(strings.TrimSpace(out), ".")
		s, _ := strconv.ParseInt(seconds, 10, 64)
		us, _ := strconv.ParseInt(micro, 10, 64)
		off = time.Unix(s, us*1000).Sub(before.Add(trip / 2)).Abs()
		if off+trip/2 <= allowed {
			return
		}
	}
	if off > allowed+trip/2 {
		t.Errorf("%s: its clock is off by %v (± %v)", m.Name(), off, trip/2)
	}
}

// TestTimers has a machine go on two hours after its snapshot: its clock was set
// back before. Timers by the calendar elapse whose time was in between, and
// systemd's monotonic ones do not notice.
func TestTimers(t *testing.T) {
	t.Parallel()
	lab := attest.New(t, small("m"))
	m := lab.Machine("m")
	m.SucceedAll([]string{
		"date -s '2 hours ago'",
		"systemd-run --quiet --unit=between --on-calendar=\"$(date -d '1 hour' '+%F %T')\" touch /run/between",
		"systemd-run --quiet --unit=tomorrow --on-calendar=\"$(date -d '1 day' '+%F %T' | tee /run/when)\" touch /run/tomorrow",
		"systemd-run --quiet --unit=elapsed --on-active=1h touch /run/elapsed",
		"systemd-run --quiet --unit=again --on-active=0 --on-unit-active=1h sh -c 'echo >> /run/again'",
	})
	m.WaitForFile("/run/again")
	m.SnapshotCreate("then")
	m.SnapshotRestore("then")
	checkClock(t, m.Machine)
	m.WaitForFile("/run/between")
	// What the change of the clock has started is over.
	m.WaitUntilSucceeds("systemctl list-jobs | grep -q '^No jobs'")
	for script, want := range map[string]string{
		"ls /run | grep -c '^\\(elapsed\\|tomorrow\\)$' || :": "0",
		"wc -l < /run/again": "1",
		"systemctl is-active elapsed.timer again.timer tomorrow.timer | sort -u":                                                      "active",
		"systemctl show -P LastTriggerUSecMonotonic elapsed.timer":                                                                    "0",
		"test \"$(date -d \"$(systemctl show -P NextElapseUSecRealtime tomorrow.timer)\" '+%F %T')\" = \"$(cat /run/when)\"; echo $?": "0",
	} {
		if got := strings.TrimSpace(m.Succeed(script)); got != want {
			t.Errorf("%s: got %q, want %q", script, got, want)
		}
	}
}

// TestFork forks a lab while a client and a server talk, and takes it back.
func TestFork(t *testing.T) {
	t.Parallel()
	lab := attest.New(t, small("one"), small("two"), small("never"))
	client, server := lab.Machine("one"), lab.Machine("two")
	client.Succeed("echo 1 > /root/file; touch /root/deleted; sync")
	transfer(server, client)
	job := client.Spawn("trap 'echo told; exit 0' TERM; echo ready; while :; do sleep 0.1; done")
	job.WaitForOutput("ready")
	lab.Checkpoint("talking")

	forks := []*attest.TestLab{lab.Fork(t), lab.Fork(t)}
	forks = append(forks, forks[0].Fork(t))
	seen := map[string]bool{}
	for i, l := range append(forks, lab) {
		m := l.Machine("one")
		m.Succeed(fmt.Sprintf("grep -q 1 /root/file; rm /root/deleted; echo %d > /root/file", i+10))
		finish(t, l)
		checkClock(t, m.Machine)
		for _, source := range randomSources {
			random := m.Succeed(source)
			if seen[random] {
				t.Errorf("fork %d has the random numbers of another: %s: %s", i, source, random)
			}
			seen[random] = true
		}
		if l.Machine("never").IsUp() {
			t.Errorf("fork %d has started a machine", i)
		}
		jobs := m.Jobs()
		if len(jobs) != 1 || !jobs[0].Running() || jobs[0].Command() != job.Command() {
			t.Fatalf("fork %d has the jobs %v", i, jobs)
		}
		jobs[0].Kill()
		if r := jobs[0].Wait(); r.ExitCode != 0 || !strings.HasSuffix(r.Stdout, "told\n") || l != lab && r.Stdout != "told\n" {
			t.Errorf("fork %d: the job ended with %+v", i, r)
		}
	}
	for i, l := range append(forks, lab) {
		if got := l.Machine("one").Succeed("cat /root/file"); got != fmt.Sprintln(i+10) {
			t.Errorf("lab %d sees what another wrote: %q", i, got)
		}
	}
	if a, b := forks[0].Machine("one").Succeed("cat /etc/machine-id"), client.Succeed("cat /etc/machine-id"); a != b {
		t.Errorf("a fork is another machine: %s, %s", a, b)
	}

	client.Shutdown()
	lab.Restore("talking")
	if got := client.Succeed("cat /root/file; ls /root/deleted; dmesg | grep -ci 'i/o error\\|ext4.*error' || :"); got != "1\n/root/deleted\n0\n" {
		t.Errorf("after the restore: %q", got)
	}
	finish(t, lab)
	if !job.Running() {
		t.Error("after the restore the job does not run")
	}
	job.Kill()
	if r := job.Wait(); r.ExitCode != 0 || r.Stdout != "told\n" {
		t.Errorf("after the restore: %+v", r)
	}
	// And from its disk alone.
	client.Succeed("sync")
	client.Crash()
	client.Start()
	if got := client.Succeed("cat /root/file; ls /root/deleted"); got != "1\n/root/deleted\n" {
		t.Errorf("booted after the restore: %q", got)
	}
}

// transfer has the server send the client numbers, for as long as it takes, and
// returns when they flow.
func transfer(server, client *attest.TestMachine) {
	server.Succeed(`perl -MIO::Socket::INET -e '
		$l = IO::Socket::INET->new(LocalPort => 9000, Listen => 1, ReuseAddr => 1) or die $!;
		$c = $l->accept;
		until ($last) {
			$last = -e "/root/enough";
			print $c pack("NN", $i++, $last) x 128 or die $!;
		}
		close $c' >/root/log 2>&1 &`)
	client.WaitUntilSucceeds(`perl -MIO::Socket::INET -e '
		$c = IO::Socket::INET->new(PeerAddr => "192.168.1.3:9000") or exit 1;
		exit 0 if fork;
		open STDOUT, ">/root/log"; open STDERR, ">&STDOUT";
		for ($n = 0; read($c, $b, 1024) == 1024; $n++) {
			die "block $n is wrong" if $b ne pack("NN", $n, $last = unpack("x4N", $b)) x 128;
			if ($n == 100) { open F, ">/root/flows" }
			if ($last) { rename "/root/flows", "/root/complete"; exit }
		}
		die "it ends after $n blocks"'`)
	client.WaitForFile("/root/flows")
}

// finish ends the transfer in a lab, and checks what came.
func finish(t *testing.T, l *attest.TestLab) {
	t.Helper()
	l.Machine("one").Succeed("test -e /root/flows")
	l.Machine("two").Succeed("touch /root/enough")
	l.Machine("one").WaitForFile("/root/complete")
}

// TestSave goes on from labs and machines that were saved as files.
func TestSave(t *testing.T) {
	t.Parallel()
	lab := attest.New(t, small("one"), small("two"), small("never"))
	one, two := lab.Machine("one"), lab.Machine("two")
	one.Succeed("echo one > /root/file; sleep infinity >/dev/null 2>&1 & echo $! > /root/pid; sync")
	two.Succeed("echo two > /root/file; sync")
	two.Shutdown()
	dir := filepath.Join(t.TempDir(), "saved")
	if err := lab.Lab.Save(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	one.Succeed("rm /root/file")

	host := lab.Host()
	opened, err := host.OpenLab(t.Context(), dir, attest.LabConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	m := tried{opened.Machine("one"), t}
	if got := m.succeed("cat /root/file; kill -0 $(cat /root/pid) && echo runs"); got != "one\nruns\n" {
		t.Errorf("the saved machine: %q", got)
	}
	if opened.Machine("two").IsUp() || opened.Machine("never").IsUp() {
		t.Error("a machine runs that did not")
	}
	if got := (tried{opened.Machine("two"), t}).succeed("cat /root/file; ping -c1 one >/dev/null; echo there"); got != "two\nthere\n" {
		t.Errorf("the machine that was off: %q", got)
	}

	// One of its machines as the beginning of another.
	other := small("other")
	other.Snapshot = filepath.Join(dir, "one")
	fresh := attest.New(t, other, small("peer"))
	fresh.StartAll()
	fresh.Machine("peer").Succeed("true")
	if got := fresh.Machine("other").Succeed("hostname; cat /root/file; ping -c1 peer >/dev/null; cat /sys/class/net/eth1/address"); got != "other\none\n52:54:00:12:01:01\n" {
		t.Errorf("a machine from a snapshot: %q", got)
	}

	// What attest does about the old name is not among what is in the way of a test.
	if got := fresh.Machine("other").Succeed("echo $HOSTNAME"); got != "other\n" {
		t.Errorf("a machine from a snapshot has HOSTNAME=%s", got)
	}
	fresh.Machine("other").WaitUntilSucceeds("test $(systemctl show -P NRestarts getty@tty1) = 1")
	err = fresh.Machine("other").Machine.WaitForOpenPort(t.Context(), 8080, attest.Timeout(2*time.Second))
	if e := errorAs[*attest.WaitError](t, err); slices.ContainsFunc(e.Details, func(d attest.Detail) bool {
		return strings.HasPrefix(d.Title, "units") && strings.Contains(d.Text, "getty")
	}) {
		t.Errorf("the renewed login is reported: %q", e.Details)
	}

	refused := func(what string, config attest.MachineConfig) error {
		t.Helper()
		lab, err := host.NewLab(t.Context(), attest.LabConfig{Machines: []attest.MachineConfig{config}})
		if err != nil {
			t.Fatal(err)
		}
		defer lab.Close()
		_, err = lab.Machines()[0].Succeed(t.Context(), "true")
		if err == nil {
			t.Fatalf("%s: it started", what)
		}
		t.Logf("%s: %v", what, err)
		return err
	}
	bigger := other
	bigger.Memory = 300
	errorAs[*attest.SnapshotMismatchError](t, refused("another size", bigger))
	changed := other
	changed.Image = attest.Debian{Run: []string{"touch /etc/other"}}
	errorAs[*attest.SnapshotMismatchError](t, refused("another image", changed))
	missing := other
	missing.Image = attest.Rootfs{Path: filepath.Join(dir, "nothing")}
	if err := refused("no image", missing); attest.StatusOf(err) != attest.Invalid {
		t.Errorf("no image: %v (%s)", err, attest.StatusOf(err))
	}
	for name, damage := range damages {
		file := filepath.Join(dir, "one", name)
		if err := exec.Command("cp", "--sparse=always", "-p", file, file+".good").Run(); err != nil {
			t.Fatal(err)
		}
		for what, do := range damage {
			if err := do(file); err != nil {
				t.Fatal(err)
			}
			errorAs[*attest.SnapshotDamagedError](t, refused(what, other))
			if err := exec.Command("cp", "--sparse=always", "-p", file+".good", file).Run(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := host.OpenLab(t.Context(), t.TempDir(), attest.LabConfig{}); attest.StatusOf(err) != attest.Invalid {
		t.Errorf("a directory without a lab: %v", err)
	}
}

// damages are ways to damage the files of a saved machine.
var damages = map[string]map[string]func(string) error{
	"device":    {"a flipped bit of a device": flip, "no devices": os.Remove},
	"meta.json": {"a flipped bit of the record": flip, "half a record": halve},
	"memory":    {"half a memory": halve},
}

// flip changes a bit in the middle of a file.
func flip(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, st.Size()/2); err != nil {
		return err
	}
	b[0] ^= 1
	_, err = f.WriteAt(b, st.Size()/2)
	return err
}

func halve(path string) error {
	st, err := os.Stat(path)
	return errors.Join(err, os.Truncate(path, st.Size()/2))
}

// TestKeepOnFailure goes on from the lab that a failed Go test has left.
func TestKeepOnFailure(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	host := attest.New(t).Host()
	for _, name := range []string{"TestKeepOnFailure", "TestKeepOnFailure-2"} {
		failed := &failedTest{TB: t}
		lab := attest.NewLab(failed, attest.LabConfig{Machines: []attest.MachineConfig{small("m")}, KeepOnFailure: dir})
		lab.Machine("m").Succeed("echo " + name + " > /run/said")
		failed.end()
		kept := filepath.Join(dir, name)
		if want := "attest debug " + kept; !strings.Contains(failed.log.String(), want) {
			t.Errorf("the log does not say %q:\n%s", want, failed.log.String())
		}
		opened, err := host.OpenLab(t.Context(), kept, attest.LabConfig{})
		if err != nil {
			t.Fatal(err)
		}
		defer opened.Close()
		if got := (tried{opened.Machine("m"), t}).succeed("cat /run/said"); got != name+"\n" {
			t.Errorf("the kept lab: %q", got)
		}
	}
	t.Cleanup(func() { // after the lab is closed
		if _, err := os.Stat(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the lab of a test that passed was kept: %v", err)
		}
	})
	attest.NewLab(t, attest.LabConfig{Machines: []attest.MachineConfig{small("m")}, KeepOnFailure: filepath.Join(dir, "none")}).Machine("m").Succeed("true")
}

// A failedTest is a test that has failed, and ends before the real one.
type failedTest struct {
	testing.TB
	mu       sync.Mutex
	log      strings.Builder
	cleanups []func()
}

func (f *failedTest) Failed() bool      { return true }
func (f *failedTest) Cleanup(fn func()) { f.cleanups = append(f.cleanups, fn) }

func (f *failedTest) Logf(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fmt.Fprintf(&f.log, format+"\n", args...)
}

func (f *failedTest) end() {
	for _, fn := range slices.Backward(f.cleanups) {
		fn()
	}
}

// TestStressSlowBoot boots machines whose only processor is busy, and which have a unit that
// takes long: one is saved when its boot is over, and one whose boot does not end is not.
func TestStressSlowBoot(t *testing.T) {
	needsStress(t)
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "slow_test.star"), `
def slow(seconds):
    unit = "[Unit]\nBefore=multi-user.target\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sleep %s\n[Install]\nWantedBy=multi-user.target\n" % seconds
    busy = "[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/bin/sh -c 'while :; do :; done'\n[Install]\nWantedBy=basic.target\n"
    return debian(title = "slow boot", files = {"/etc/systemd/system/slow.service": unit, "/etc/systemd/system/busy.service": busy}, run = ["systemctl enable slow busy"])

ends = machine(image = slow("30"), memory = 256)
never = machine(image = slow("infinity"), memory = 256)

def test_ends():
    assert_eq(ends.execute("systemctl is-system-running").stdout.strip(), "running")

def test_never():
    never.wait_until_succeeds("systemctl list-jobs | grep -E 'slow.service +start +running'")
`)
	const saved = "ends (slow boot, 256 MiB)"
	forget := func() { exec.Command("attest", "snapshot", "remove", saved).Run() } // there may be none
	forget()
	defer forget()
	p := start(t, newStateDir(t), nil, "attest", "run", "-o", dir, filepath.Join(dir, "slow_test.star"))
	if code := p.exitCodeWithin(t, 2*patience); code != 0 || strings.Contains(p.said(), "ends boots") {
		t.Errorf("exit code %d, want 0:\n%s", code, p.said())
	}
	if list, err := exec.Command("attest", "snapshot", "list").CombinedOutput(); err != nil || !strings.Contains(string(list), saved) || strings.Contains(string(list), "never (slow boot") {
		t.Errorf("the cache has (%v)\n%s", err, list)
	}
	// Each is told about: how far they are, and why one is not saved.
	var begun, first, given time.Time
	text, err := os.ReadFile(filepath.Join(dir, "events.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	named := false
	for line := range strings.Lines(string(text)) {
		var e struct {
			Time                time.Time
			Type, Message, Text string
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		switch {
		case e.Type == "run_started":
			begun = e.Time
		case strings.HasPrefix(e.Message, "1 of 2 machines booted once"):
			if first.IsZero() {
				first = e.Time
			}
			named = named || strings.HasSuffix(e.Message, "; never: systemd is starting slow.service")
		case strings.HasPrefix(e.Text, "never boots, because there is no snapshot to start from: never: its boot is not over, systemd is starting slow.service (after "):
			given = e.Time
		}
	}
	if first.IsZero() || given.IsZero() || !named {
		t.Fatalf("nobody is told of the boots:\n%s", p.said())
	}
	fmt.Printf("slow boot: one machine saved after %v, the other given up after %v\n", first.Sub(begun).Round(time.Second), given.Sub(begun).Round(time.Second))
}
