package fake

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/attest-vm/attest/internal/vmm/microvm/fake"
)

const jailerName = "jailer"

// JailerOptions are how a fake jailer differs from one that works. The zero value works.
type JailerOptions struct {
	Version string // default that of Options
}

// InstallJailer makes this test binary a jailer of Firecracker, which does as root what the real
// one does: its arguments, its root directory and what is in there, what it closes, clears and
// refuses, with its texts. In the root directory are also the system's programs and /dev/null, by
// which the fake's guest runs commands, and it leaves what makes a program the fake in the
// environment. It returns the program.
func InstallJailer(t fake.T, o JailerOptions) string {
	t.Helper()
	return fake.Install(t, jailerName, "", o, false)
}

// A refusal is an error in the words of the real one.
type refusal string

func (r refusal) Error() string { return string(r) }

// jailer is the process.
type jailer struct {
	given map[string]string // of its arguments
	extra []string          // for Firecracker
	root  string
}

func runJailer(o JailerOptions, args []string) int {
	runtime.LockOSThread() // namespaces are a thread's
	unix.CloseRange(3, 1<<31, unix.CLOSE_RANGE_CLOEXEC)
	j := &jailer{given: map[string]string{"chroot-base-dir": "/srv/jailer", "cgroup-version": "1"}}
	if slices.Contains(args, "--version") {
		fmt.Printf("Jailer v%s\n\n", Options{Version: o.Version}.version())
		return 0
	}
	err := j.parse(args)
	if err == nil {
		err = j.check()
	}
	if err == nil {
		err = j.run()
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// parse reads the arguments as strictly as the real one.
func (j *jailer) parse(args []string) error {
	fail := func(format, name string) error {
		return refusal(fmt.Sprintf("Failed to parse arguments: "+format, name))
	}
	seen := map[string]bool{}
	for len(args) > 0 {
		name, found := strings.CutPrefix(args[0], "--")
		args = args[1:]
		if name == "" {
			j.extra = args
			break
		}
		takes := slices.Contains([]string{"id", "exec-file", "uid", "gid", "chroot-base-dir", "netns", "cgroup", "resource-limit", "cgroup-version", "parent-cgroup"}, name)
		switch {
		case !found || !takes && name != "daemonize" && name != "new-pid-ns":
			return fail("Found argument '%s' which wasn't expected, or isn't valid in this context.", name)
		case seen[name] && name != "cgroup" && name != "resource-limit":
			return fail("The argument '%s' was provided more than once.", name)
		case takes && (len(args) == 0 || strings.HasPrefix(args[0], "--")):
			return fail("The argument '%s' requires a value, but none was supplied.", name)
		}
		seen[name] = true
		if j.given[name] = ""; takes {
			j.given[name], args = args[0], args[1:]
		}
	}
	for _, name := range []string{"exec-file", "gid", "id", "uid"} {
		if !seen[name] {
			return fail("Argument '%s' required, but not found.", name)
		}
	}
	for _, name := range []string{"cgroup", "resource-limit", "daemonize", "new-pid-ns", "netns", "parent-cgroup"} {
		if seen[name] {
			return errors.New("the fake jailer has no --" + name)
		}
	}
	return nil
}

// check refuses what the real one refuses before it has made anything.
func (j *jailer) check() error {
	id := j.given["id"]
	if len(id) < 1 || len(id) > 64 {
		return refusal(fmt.Sprintf("Invalid instance ID: Invalid len (%d);  the length must be between 1 and 64", len(id)))
	}
	for i, c := range []rune(id) {
		if c != '-' && !unicode.IsLetter(c) && !unicode.IsNumber(c) {
			return refusal(fmt.Sprintf("Invalid instance ID: Invalid char (%c) at position %d", c, i))
		}
	}
	var dirs [2]string
	for i, name := range []string{"exec-file", "chroot-base-dir"} {
		path, err := filepath.EvalSymlinks(j.given[name])
		if err != nil {
			return refusal("Failed to canonicalize path " + j.given[name] + ": No such file or directory (os error 2)")
		}
		st, err := os.Stat(path)
		switch {
		case err != nil:
			return err
		case i == 0 && !st.Mode().IsRegular():
			return errors.New(path + " is not a file")
		case i == 1 && !st.IsDir():
			return errors.New(path + " is not a directory")
		}
		dirs[i] = path
	}
	j.given["exec-file"] = dirs[0]
	j.root = filepath.Join(dirs[1], filepath.Base(dirs[0]), id, "root")
	for _, name := range []string{"uid", "gid"} {
		if _, err := strconv.ParseUint(j.given[name], 10, 32); err != nil {
			return refusal("Invalid " + name + ": " + j.given[name])
		}
	}
	return nil
}

func (j *jailer) number(name string) int {
	n, _ := strconv.ParseUint(j.given[name], 10, 32)
	return int(n)
}

// told is an error of the system as a refusal.
func told(what string, err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return fmt.Errorf("%s: %w", what, err)
	}
	text := errno.Error()
	return refusal(fmt.Sprintf("%s: %s%s (os error %d)", what, strings.ToUpper(text[:1]), text[1:], errno))
}

func (j *jailer) run() error {
	if err := os.MkdirAll(j.root, 0o755); err != nil {
		return told("Failed to create directory "+j.root, err)
	}
	name := filepath.Base(j.given["exec-file"])
	if err := j.copyProgram(name); err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 2048, Max: 2048}); err != nil {
		return told("Failed to set limit for resource", err)
	}
	if err := j.enter(); err != nil {
		return err
	}
	uid, gid := j.number("uid"), j.number("gid")
	for _, dir := range []string{"/", "/dev", "/dev/net", "/run"} {
		err := os.MkdirAll(dir, 0o700)
		if err == nil {
			err = errors.Join(os.Chmod(dir, 0o700), os.Chown(dir, uid, gid))
		}
		if err != nil {
			return told("Failed to create directory "+dir, err)
		}
	}
	for _, node := range []struct {
		path         string
		major, minor uint32
	}{{"/dev/net/tun", 10, 200}, {"/dev/kvm", 10, 232}, {"/dev/urandom", 1, 9}, {"/dev/null", 1, 3}} {
		if err := unix.Mknod(node.path, unix.S_IFCHR|0o600, int(unix.Mkdev(node.major, node.minor))); err != nil {
			return told("Failed to create "+node.path+" via mknod inside the jail", err)
		}
		if err := os.Chown(node.path, uid, gid); err != nil {
			return told("Failed to change owner for "+node.path, err)
		}
	}
	pid, err := os.OpenFile("/"+name+".pid", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return told("Failed to open file /"+name+".pid", err)
	}
	fmt.Fprint(pid, os.Getpid())
	pid.Close()
	for _, become := range []error{syscall.Setgroups(nil), syscall.Setgid(gid), syscall.Setuid(uid)} {
		if become != nil {
			return told("Failed to exec into Firecracker", become)
		}
	}
	argv := append([]string{"/" + name, "--id", j.given["id"], "--start-time-us", "1", "--start-time-cpu-us", "1", "--parent-cpu-time-us", "1"}, j.extra...)
	fakes := fake.Variable(name)
	return told("Failed to exec into Firecracker", unix.Exec("/"+name, argv, []string{fakes + "=" + os.Getenv(fakes), "GORACE=atexit_sleep_ms=0"}))
}

// copyProgram copies Firecracker into the root directory: no two of them share memory.
func (j *jailer) copyProgram(name string) error {
	from, err := os.Open(j.given["exec-file"])
	if err != nil {
		return told("Failed to open "+j.given["exec-file"], err)
	}
	defer from.Close()
	st, err := from.Stat()
	if err != nil {
		return err
	}
	path := filepath.Join(j.root, name)
	to, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, st.Mode())
	if err != nil {
		return told("Failed to open "+path, err)
	}
	defer to.Close()
	var there unix.Stat_t
	if err := unix.Fstat(int(to.Fd()), &there); err != nil || there.Nlink > 1 {
		return errors.Join(refusal("Detected hard link at: "+path), err)
	}
	if err := to.Chown(j.number("uid"), j.number("gid")); err != nil {
		return told("Failed to change owner for "+path, err)
	}
	if _, err := io.Copy(to, from); err != nil {
		return told("Failed to copy "+j.given["exec-file"]+" to "+path, err)
	}
	return nil
}

// enter makes the root directory that of this process.
func (j *jailer) enter() error {
	for _, step := range []struct {
		fails string
		do    func() error
	}{
		{"Failed to unshare into new mount namespace", func() error { return unix.Unshare(unix.CLONE_NEWNS) }},
		{"Failed to change the propagation type to slave", func() error { return unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, "") }},
		{"The fake jailer does not show the system", j.showSystem},
		{"Failed to bind mount the jail root directory", func() error { return unix.Mount(j.root, j.root, "", unix.MS_BIND|unix.MS_REC, "") }},
		{"Failed to change current directory", func() error { return unix.Chdir(j.root) }},
		{"Failed to create the jail root directory before pivoting root", func() error { return unix.Mkdir("old_root", 0o600) }},
		{"Failed to pivot root", func() error { return unix.PivotRoot(".", "old_root") }},
		{"Failed to chdir into chroot directory", func() error { return unix.Chdir("/") }},
		{"Failed to unmount the old jail root", func() error { return unix.Unmount("old_root", unix.MNT_DETACH) }},
		{"Failed to remove old jail root directory", func() error { return unix.Rmdir("old_root") }},
	} {
		if err := step.do(); err != nil {
			return told(step.fails, err)
		}
	}
	return nil
}

// showSystem shows what the commands of the fake's guest need.
func (j *jailer) showSystem() error {
	for _, dir := range []string{"/usr", "/bin", "/lib", "/lib64"} {
		path := filepath.Join(j.root, dir)
		if target, err := os.Readlink(dir); err == nil {
			if err := os.Symlink(target, path); err != nil {
				return err
			}
		} else if _, err := os.Stat(dir); err == nil {
			if err := os.Mkdir(path, 0o755); err != nil {
				return err
			}
			if err := unix.Mount(dir, path, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
				return err
			}
		}
	}
	return nil
}
