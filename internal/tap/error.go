package tap

import (
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// An UnavailableError is returned on a host where no namespace with a TAP can be made.
type UnavailableError struct {
	Step   string // what did not work: "open /dev/net/tun"
	Err    error
	Remedy string // how to fix it; most remedies need root
}

func (e *UnavailableError) Error() string {
	msg := "no TAP in a network namespace: " + e.Step + ": " + e.Err.Error()
	if e.Remedy != "" {
		msg += "; " + e.Remedy
	}
	return msg
}

func (e *UnavailableError) Unwrap() error { return e.Err }

const (
	namespaceStep = "make a network namespace"
	openStep      = "open " + tunDevice
	tapStep       = "make the TAP "
)

// failed is an error of one step, with its remedy.
func failed(step string, err error) error {
	var known *UnavailableError
	if errors.As(err, &known) {
		return err
	}
	return &UnavailableError{step, err, remedy(step, err, sysctl)}
}

// remedy returns how to fix an error. The error alone does not tell: the same
// EPERM comes from half a dozen settings. setting reads a sysctl.
func remedy(step string, err error, setting func(name string) string) string {
	const apparmor = "kernel.apparmor_restrict_unprivileged_userns"
	refused := errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)
	switch {
	case errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM):
		return "" // no setting forbids it
	case step == namespaceStep && errors.Is(err, unix.ENOSPC):
		return "the limit of namespaces is reached; as root: sysctl -w user.max_user_namespaces=15000 user.max_net_namespaces=15000"
	case step == namespaceStep && setting("kernel.unprivileged_userns_clone") == "0":
		return "as root: sysctl -w kernel.unprivileged_userns_clone=1"
	case step != openStep && refused && setting(apparmor) == "1":
		return "AppArmor forbids user namespaces to programs without a profile; as root: sysctl -w " + apparmor + "=0"
	case step == namespaceStep:
		return "user namespaces are forbidden here; in a container, start it with --security-opt seccomp=unconfined or --privileged"
	case step == openStep && refused:
		return "as root: chmod 666 " + tunDevice + " (as udev sets it); in a container, start it with --device " + tunDevice
	case step == openStep:
		return "as root: modprobe tun; in a container, start it with --device " + tunDevice + "; in a build of Nix, have extra-sandbox-paths = " + tunDevice + " in nix.conf"
	case strings.HasPrefix(step, "make a bridge") && errors.Is(err, unix.EOPNOTSUPP):
		return "as root: modprobe bridge"
	case refused:
		return "this namespace may not change its network; in a container, start it with --cap-add NET_ADMIN or --privileged"
	}
	return ""
}

// NamespaceRemedy is what to do about a host that makes no namespaces for its users.
func NamespaceRemedy(err error) string { return remedy(namespaceStep, err, sysctl) }

func sysctl(name string) string {
	b, _ := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	return strings.TrimSpace(string(b))
}
