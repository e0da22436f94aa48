package agent

import (
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/attest-vm/attest/internal/wire"
)

// A user is a line of /etc/passwd, with the groups of /etc/group. The agent is
// linked without the C library, so it does not ask NSS.
type user struct {
	name, home, shell string
	uid, gid          uint32
	groups            []uint32
}

// lookupUser finds a user by name or by number.
func lookupUser(name string) (*user, error) {
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		return nil, err
	}
	group, _ := os.ReadFile("/etc/group")
	u := parseUser(string(passwd), string(group), name)
	if u == nil {
		return nil, errorf(wire.KindNotFound, "no user %q in the guest's /etc/passwd", name)
	}
	return u, nil
}

func parseUser(passwd, group, name string) *user {
	var u *user
	for line := range strings.Lines(passwd) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 7 || f[0] != name && f[2] != name {
			continue
		}
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 == nil && err2 == nil {
			u = &user{name: f[0], home: f[5], shell: f[6], uid: uint32(uid), gid: uint32(gid)}
			break
		}
	}
	if u == nil {
		return nil
	}
	if u.home == "" {
		u.home = "/"
	}
	if u.shell == "" {
		u.shell = "/bin/sh"
	}
	u.groups = []uint32{u.gid}
	for line := range strings.Lines(group) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 4 {
			continue
		}
		gid, err := strconv.ParseUint(f[2], 10, 32)
		for member := range strings.SplitSeq(f[3], ",") {
			if err == nil && member == u.name && uint32(gid) != u.gid {
				u.groups = append(u.groups, uint32(gid))
			}
		}
	}
	return u
}

func sysProcAttr(cred *syscall.Credential) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Credential: cred}
}
