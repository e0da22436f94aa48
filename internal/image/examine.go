package image

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strings"
	"syscall"

	"github.com/attest-vm/attest/internal/cache"
	"github.com/attest-vm/attest/internal/doctor"
)

// Examine reports whether images can be built on this host, for attest doctor.
func Examine(ctx context.Context) []doctor.Finding {
	var out []doctor.Finding
	for _, t := range tools {
		f := doctor.Finding{Name: t.name, Detail: t.use + ": not found", Remedy: "apt-get install " + t.pkg}
		if path, err := lookTool(t.name); err == nil {
			f = doctor.Finding{Name: t.name, OK: true, Detail: path}
		}
		out = append(out, f)
	}
	return append(out, buildRights(), cacheFinding())
}

// buildRights looks for what a build needs of this user. Root has it by itself, unless
// it is a root without rights, as in a container.
func buildRights() doctor.Finding {
	if os.Geteuid() != 0 {
		return subordinateIDs()
	}
	f := doctor.Finding{Name: "builds as root", OK: true, Detail: "in namespaces of their own"}
	// What mmdebstrap does first. Unshareflags also makes the mounts private.
	try := exec.Command("/bin/sh", "-c", ":")
	try.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		Unshareflags: syscall.CLONE_NEWNS,
	}
	if err := try.Run(); err != nil {
		f.OK, f.Detail = false, fmt.Sprintf("this root may not make namespaces and mount in them (%v)", err)
		f.Remedy = "give the container CAP_SYS_ADMIN, or run attest as a user with subordinate ids (/etc/subuid)"
	}
	return f
}

// subordinateIDs looks for what a build without root needs: a range of user
// ids of one's own, and the programs that are allowed to hand it out.
func subordinateIDs() doctor.Finding {
	f := doctor.Finding{Name: "builds without root"}
	if _, err := lookTool("newuidmap"); err != nil {
		f.Detail, f.Remedy = "newuidmap is missing", "apt-get install uidmap"
		return f
	}
	u, err := user.Current()
	if err != nil {
		f.Detail, f.Remedy = err.Error(), "add this user to /etc/passwd"
		return f
	}
	for _, name := range []string{"/etc/subuid", "/etc/subgid"} {
		data, _ := os.ReadFile(name)
		found := false
		for line := range strings.Lines(string(data)) {
			found = found || strings.HasPrefix(line, u.Username+":") || strings.HasPrefix(line, u.Uid+":")
		}
		if !found {
			f.Detail = u.Username + " has no range in " + name
			f.Remedy = fmt.Sprintf("usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s", u.Username)
			return f
		}
	}
	f.OK, f.Detail = true, "in a user namespace"
	return f
}

// cacheFinding looks for room for a first image.
func cacheFinding() doctor.Finding {
	f := doctor.Finding{Name: "image cache"}
	s, err := OpenStore(nil)
	if err != nil {
		f.Detail, f.Remedy = err.Error(), "set XDG_CACHE_HOME to a directory that can be written to"
		return f
	}
	has := cache.Free(s.root)
	f.OK = has >= deriveNeeds
	f.Detail = fmt.Sprintf("%s, %d MiB free", s.root, has>>20)
	if !f.OK {
		f.Remedy = fmt.Sprintf("make room for %d MiB, or set XDG_CACHE_HOME; attest image prune removes what is not in use", int64(deriveNeeds)>>20)
	}
	return f
}
