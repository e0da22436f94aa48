package backdoor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/attest-vm/attest/internal/agent"
	"github.com/attest-vm/attest/internal/printable"
	"github.com/attest-vm/attest/internal/wire"
)

var _ agent.Starter = (*shell)(nil)

var longAgo = time.Unix(1, 0) // a deadline that interrupts at once

// Info is who answers.
func (s *shell) Info(i *wire.Info) {
	i.Instance, i.BootID, i.Kernel, i.Hostname, i.Uptime = s.info.Instance, s.info.BootID, s.info.Kernel, s.info.Hostname, s.info.Uptime
}

// Ping has pong called when the shell has answered.
func (s *shell) Ping(pong func()) {
	go func() { // until the shell answers or is over
		if _, err := s.askAgain(context.Background(), "ping"); err == nil {
			pong()
		}
	}()
}

// Operate does by commands what an agent in the guest does by system calls. Commands
// themselves are the agent.Server's affair, which asks for them by StartCommand.
func (s *shell) Operate(stream *wire.Stream, r wire.Request, next func(wire.Request) (any, error)) (any, error) {
	ctx := stream.Context()
	switch r.Op {
	case wire.OpExec, wire.OpUntil, wire.OpJobs, wire.OpAdopt:
		return next(r)
	case wire.OpWarm:
		return nil, nil
	case wire.OpEcho:
		_, err := s.askAgain(ctx, "ping")
		return nil, err
	case wire.OpWaitUnit:
		return decode(r, func(q wire.UnitRequest) (any, error) { return s.waitUnit(ctx, q) })
	case wire.OpWaitFile:
		return decode(r, func(q wire.FileRequest) (any, error) { return s.waitFile(ctx, q) })
	case wire.OpWaitPort:
		return decode(r, func(q wire.PortRequest) (any, error) { return s.waitPort(ctx, q) })
	case wire.OpWaitSocket:
		return decode(r, func(q wire.SocketRequest) (any, error) { return s.waitSocket(ctx, q) })
	case wire.OpWaitTTY:
		return decode(r, func(q wire.TTYRequest) (any, error) { return s.waitTTY(ctx, q) })
	case wire.OpWaitX:
		return decode(r, func(q wire.WindowRequest) (any, error) { return s.waitX(ctx, q) })
	case wire.OpPutTar:
		return decode(r, func(q wire.CopyRequest) (any, error) { return s.put(stream, string(q.Path)) })
	case wire.OpGetTar:
		return decode(r, func(q wire.CopyRequest) (any, error) { return s.get(stream, string(q.Path)) })
	case wire.OpIdentity:
		return decode(r, func(q wire.Identity) (any, error) { return nil, s.identify(ctx, q) })
	case wire.OpClock:
		return decode(r, func(q wire.ClockRequest) (any, error) { return s.clock(ctx, q) })
	case wire.OpSettle:
		return nil, s.must(ctx, "sync")
	case wire.OpSuspend:
		return nil, s.must(ctx, suspendScript)
	case wire.OpPower:
		return decode(r, func(q wire.PowerRequest) (any, error) { return nil, s.power(ctx, q) })
	}
	return nil, errorf(wire.KindFailed, "%s", refusal(r.Op))
}

// suspendScript is the agent's way to suspend. systemd refuses as long as the hooks of the sleep
// before run.
const suspendScript = `if [ -d /run/systemd/system ]; then
	until said=$(LC_ALL=C systemctl suspend 2>&1); do
		case $said in *"in progress"*) sleep 0.1 ;; *) echo "systemctl suspend: $said" >&2; exit 1 ;; esac
	done
else
	echo mem > /sys/power/state
fi`

// refusal says what cannot be had from a shell.
func refusal(op string) string {
	what := map[string]string{wire.OpTerminal: "a terminal", wire.OpConnect: "a forwarded port", wire.OpPicture: "a picture of what the guest shows"}[op]
	if what == "" {
		what = fmt.Sprintf("%q", op)
	}
	return what + " needs attest's agent in the guest, which does not run there; its root shell is used instead (docs/foreign.md)"
}

func decode[Q any](r wire.Request, fn func(Q) (any, error)) (any, error) {
	var q Q
	if err := json.Unmarshal(r.Args, &q); err != nil {
		return nil, errorf(wire.KindInvalid, "%s: %v", r.Op, err)
	}
	return fn(q)
}

func errorf(kind, format string, args ...any) error {
	return &wire.Error{Kind: kind, Message: fmt.Sprintf(format, args...)}
}

// must runs a script that has to succeed.
func (s *shell) must(ctx context.Context, script string, words ...string) error {
	r, err := s.run(ctx, nil, nil, script, words...)
	if err == nil && r.code != 0 {
		err = errorf(wire.KindFailed, "%s", r.complaint())
	}
	return err
}

// complaint is what a script that failed says.
func (r outcome) complaint() string {
	text := strings.TrimSpace(string(r.stderr))
	if text == "" {
		return fmt.Sprintf("exit code %d", r.code)
	}
	return printable.Text(text[strings.LastIndexByte(text, '\n')+1:])
}

// lookScript calls look, which a wait defines, until it says yes, or for a moment: then it says
// what was seen. $1 is 1 for one look.
const lookScript = `
exec {never}<> <(:)
n=0 seen=
while n=$((n + 1)); do
look "${@:2}" && { printf 'yes %d %s' $n "$seen"; exit; }
[ "$1" != 1 ] && [ $SECONDS -lt 3 ] || { printf 'no %d %s' $n "$seen"; exit; }
read -t 0.1 -u $never
done
`

var errNotYet = errorf(wire.KindTimeout, "not yet")

// look waits until a function of bash says yes.
func (s *shell) look(ctx context.Context, once bool, function string, words ...string) (wire.Observation, error) {
	return s.lookUnless(ctx, once, "", function, words...)
}

// lookUnless is look that ends, too, when a unit has failed; an empty name is none.
func (s *shell) lookUnless(ctx context.Context, once bool, unit, function string, words ...string) (seen wire.Observation, err error) {
	flag := "0"
	if once {
		flag = "1"
	}
	for {
		r, err := s.run(ctx, nil, nil, "look() {\n"+function+"\n}\n"+lookScript, append([]string{flag}, words...)...)
		if err != nil {
			return seen, err
		}
		verdict, rest, _ := strings.Cut(string(r.stdout), " ")
		tries, text, _ := strings.Cut(rest, " ")
		n, err := strconv.Atoi(tries)
		if err != nil || n < 0 || n > 1e6 || verdict != "yes" && verdict != "no" {
			return seen, errorf(wire.KindFailed, "the guest's root shell cannot look: %s", r.complaint())
		}
		seen.Tries, seen.Seen = seen.Tries+n, printable.Text(text)
		if verdict == "yes" {
			return seen, nil
		}
		if unit != "" {
			if r, err = s.run(ctx, nil, nil, `systemctl is-failed --quiet -- "$1"`, unit); err != nil {
				return seen, err
			}
			if r.code == 0 {
				return seen, errorf(wire.KindUnit, `reached state "failed"`)
			}
		}
		if once {
			return seen, errNotYet
		}
	}
}

func (s *shell) waitFile(ctx context.Context, q wire.FileRequest) (wire.Observation, error) {
	if q.Path == "" {
		return wire.Observation{}, errorf(wire.KindInvalid, "no file name")
	}
	if !path.IsAbs(q.Path) {
		q.Path = path.Join("/tmp", q.Path)
	}
	return s.look(ctx, q.Once, `[ -e "$1" ] && return
seen="stat $1: no such file or directory"
local dir=${1%/*}
while [ -n "$dir" ] && [ ! -d "$dir" ]; do dir=${dir%/*}; done
[ "$dir" = "${1%/*}" ] || seen+="; of the directories above, ${dir:-/} is there"
return 1`, q.Path)
}

func (s *shell) waitPort(ctx context.Context, q wire.PortRequest) (wire.Observation, error) {
	if q.Port < 1 || q.Port > 65535 {
		return wire.Observation{}, errorf(wire.KindInvalid, "port %d: must be from 1 to 65535", q.Port)
	}
	want := "0"
	if q.Closed {
		want = "1"
	}
	unit := q.Unit
	if q.Closed {
		unit = ""
	}
	return s.lookUnless(ctx, q.Once, unit, `local said
case $1 in
localhost|127.*|::1) said=$( { exec 3<> "/dev/tcp/$1/$2"; } 2>&1) ;;
*) said=$(timeout 2 bash -c 'exec 3<> "/dev/tcp/$1/$2"' bash "$1" "$2" 2>&1) ;;
esac
local status=$?
[ $status != 124 ] || said="it does not answer within 2 s"
said=${said%%$'\n'*}
[ $status = 0 ] && seen="connected to $1:$2" || seen="connect to $1:$2: ${said##*: }"
[ $status = 0 ] && status=0 || status=1
[ $status = $3 ]`, q.Host, strconv.Itoa(q.Port), want)
}

func (s *shell) waitSocket(ctx context.Context, q wire.SocketRequest) (wire.Observation, error) {
	kind := "0001"
	if q.Datagram {
		kind = "0002"
	}
	if len(q.Path) == 0 || len(q.Path) > 107 {
		return wire.Observation{}, errorf(wire.KindInvalid, "%s: not a socket address", q.Path)
	}
	// The kernel's list says who listens (__SO_ACCEPTCON), and needs no client.
	return s.look(ctx, q.Once, `local flags type name
[ -S "$1" ] || { seen="connect to $1: there is no socket"; return 1; }
while read -r _ _ _ flags type _ _ name; do
[ "$name" = "$1" ] && [ "$type" = "$2" ] && { [ "$2" = 0002 ] || [ "$flags" = 00010000 ]; } && return
done < /proc/net/unix
seen="connect to $1: no process accepts it"
return 1`, q.Path, kind)
}

// waitUnit asks systemctl.
func (s *shell) waitUnit(ctx context.Context, q wire.UnitRequest) (wire.UnitState, error) {
	if r, err := s.run(ctx, nil, nil, "[ -d /run/systemd/system ]"); err != nil {
		return wire.UnitState{}, err
	} else if r.code != 0 {
		return wire.UnitState{}, errorf(wire.KindUnit, "cannot become active: this guest's init is not systemd")
	}
	return agent.WaitUnitBy(ctx, q, func(ctx context.Context, args ...string) (string, error) {
		request := wire.ExecRequest{User: q.User, Argv: append([]string{"systemctl", "--no-pager"}, args...)}
		if q.User != "" {
			request.Argv = slices.Insert(request.Argv, 1, "--user")
		}
		r, err := s.collect(ctx, request, nil, nil)
		return string(r.stdout), err
	})
}

// waitTTY compares on this side: the guest's regular expressions are others.
func (s *shell) waitTTY(ctx context.Context, q wire.TTYRequest) (state wire.TTYState, err error) {
	if q.TTY < 1 || q.TTY > 63 {
		return state, errorf(wire.KindInvalid, "there is no terminal %d; they are 1 to 63", q.TTY)
	}
	pattern, err := regexp.Compile("(?m)" + q.Pattern)
	if err != nil {
		return state, errorf(wire.KindInvalid, "not a regular expression: %v", err)
	}
	for {
		r, err := s.run(ctx, nil, nil, `head -c 4 "/dev/vcsa$1" && cat "/dev/vcsu$1"`, strconv.Itoa(q.TTY))
		if err != nil {
			return state, err
		}
		if r.code == 0 && len(r.stdout) > 4 {
			text, err := agent.ScreenText(r.stdout[:4], r.stdout[4:])
			if err != nil {
				return state, errorf(wire.KindFailed, "tty%d: %v", q.TTY, err)
			}
			if state = (wire.TTYState{Text: text}); pattern.MatchString(text) {
				return state, nil
			}
		} else if q.Pattern == "" {
			return state, errorf(wire.KindNotFound, "nothing has used tty%d", q.TTY)
		} else if state.Text == "" {
			state.Missing = true
		}
		if err := pause(ctx); err != nil {
			return state, err
		}
	}
}

// pause is between two looks from this side.
func pause(ctx context.Context) error {
	select {
	case <-time.After(200 * time.Millisecond):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

var windowTitle = regexp.MustCompile(`(?m)^\s*0x[0-9a-f]+ "(.*)": \(`)

func (s *shell) waitX(ctx context.Context, q wire.WindowRequest) (state wire.WindowState, err error) {
	pattern, err := regexp.Compile(q.Pattern)
	if err != nil {
		return state, errorf(wire.KindInvalid, "not a regular expression: %v", err)
	}
	display := cmp.Or(q.Display, ":0")
	if agent.IsWayland(display) {
		return state, errorf(wire.KindFailed, "the windows of a Wayland compositor need attest's agent in the guest")
	}
	for {
		r, err := s.run(ctx, nil, nil, `type -P xwininfo > /dev/null || exit 127; export DISPLAY=$1; XAUTHORITY=${XAUTHORITY-$(ls -t /run/user/*/.mutter-Xwaylandauth* /run/user/*/xauth* /var/run/lightdm/root/:0 /root/.Xauthority 2> /dev/null | head -n 1)} xwininfo -root -tree`, display)
		if err != nil {
			return state, err
		}
		if r.code == 127 {
			return state, errorf(wire.KindFailed, "the windows of an X server need attest's agent or xwininfo in the guest")
		}
		state.Tries++
		if r.code == 0 {
			state.Windows, state.Seen = nil, ""
			for _, found := range windowTitle.FindAllStringSubmatch(string(r.stdout), -1) {
				state.Windows = append(state.Windows, found[1])
			}
			if q.Once || q.Pattern == "" || slices.ContainsFunc(state.Windows, pattern.MatchString) {
				return state, nil
			}
		} else if state.Seen = "no X server on display " + display + ": " + r.complaint(); q.Once {
			return state, errorf(wire.KindFailed, "%s", state.Seen)
		}
		if err := pause(ctx); err != nil {
			return state, err
		}
	}
}

// identify gives the guest time and entropy. A guest that is reached by its root shell has a
// name and addresses of its own.
func (s *shell) identify(ctx context.Context, id wire.Identity) error {
	if id.Hostname != "" || id.MachineID != "" || len(id.Hosts)+len(id.Interfaces)+len(id.Nameservers) > 0 {
		return errorf(wire.KindFailed, "a name and addresses need attest's agent in the guest")
	}
	if len(id.Entropy) > 0 {
		script := "printf '"
		for _, c := range id.Entropy {
			script += fmt.Sprintf(`\x%02x`, c)
		}
		if err := s.must(ctx, script+"' > /dev/urandom"); err != nil {
			return err
		}
	}
	if id.Time.IsZero() {
		return nil
	}
	return s.setTime(ctx, id.Time)
}

func (s *shell) setTime(ctx context.Context, t time.Time) error {
	return s.must(ctx, `date -s "@$1" > /dev/null`, fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()))
}

// clock moves the guest's clock, as exactly as a date that has to be started can.
func (s *shell) clock(ctx context.Context, q wire.ClockRequest) (wire.ClockResult, error) {
	now, err := s.now(ctx)
	if err == nil && q.Step != 0 {
		if err = s.setTime(ctx, now.Add(q.Step)); err == nil {
			now, err = s.now(ctx)
		}
	}
	return wire.ClockResult{Time: now}, err
}

func (s *shell) now(ctx context.Context) (time.Time, error) {
	text, err := s.askAgain(ctx, "ping")
	if err != nil {
		return time.Time{}, err
	}
	if text == "" { // a bash before 5.0
		r, err := s.run(ctx, nil, nil, "date +%s.%6N")
		if err != nil {
			return time.Time{}, err
		}
		text = strings.TrimSpace(string(r.stdout))
	}
	seconds, micros, _ := strings.Cut(strings.Replace(text, ",", ".", 1), ".")
	sec, err := strconv.ParseInt(seconds, 10, 64)
	us, err2 := strconv.ParseInt(micros, 10, 64)
	if err != nil || err2 != nil || sec < 0 || sec > 1<<38 || us < 0 || us > 999999 {
		return time.Time{}, errorf(wire.KindFailed, "the guest says that the time is %q", printable.Text(text))
	}
	return time.Unix(sec, us*1000), nil
}

func (s *shell) power(ctx context.Context, q wire.PowerRequest) error {
	what := "poweroff"
	switch {
	case q.Panic:
		what = "panic"
	case q.Reboot:
		what = "reboot"
	}
	answer, err := s.ask(ctx, "power", what)
	if errors.Is(err, errShellOver) || errors.Is(err, errAnswerLost) {
		return nil // quicker than its answer, or without it: the guest shows whether it goes down
	}
	if err == nil && answer != "0" {
		err = errorf(wire.KindFailed, "%s: exit code %s", what, printable.Text(answer))
	}
	return err
}
