package backdoor

import (
	"context"
	"crypto/rand"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/printable"
)

// A guest without a root shell on /dev/hvc0 may have a login on its serial console. A
// Door with a Login logs in there at each boot, and has the shell that it gets start a
// root shell on /dev/hvc0. All that follows is the same as with a guest that offers one.

// A Login is an account of the guest's: root's, or one that sudo makes root.
type Login struct {
	User, Password string
	// Type writes to the serial console; nil: there is no way to.
	Type func(context.Context, []byte) error
	// Patience is how long a console that says nothing is waited for, before something is
	// tried again.
	Patience time.Duration
	// Refused is called when nobody can log in: a *LoginError.
	Refused func(error)
}

// A LoginError is a guest at whose serial console attest cannot log in.
type LoginError struct {
	Machine, User string
	Reason        string
}

func (e *LoginError) Error() string {
	return fmt.Sprintf("%s: attest cannot log in as %s on the serial console: %s", e.Machine, e.User, e.Reason)
}

// Status says that it is the guest which did not come up.
func (*LoginError) Status() event.Status { return event.BootFailed }

// loginScript is what the login's shell becomes. It makes a root shell on the console of
// the door, and ends when that has announced itself, so that the serial console has its login
// back. $1 is a word for its answers, which nothing that is typed has in one piece. It has
// no quotes of the kind that it is put into. systemd has a login on a virtio console
// whose driver was there before it, which would read there as well.
const loginScript = `[ -c /dev/hvc0 ] || { echo "attest:$1:the guest has no /dev/hvc0: its kernel lacks the driver of virtio consoles"; exit; }; ` +
	`b=$(command -v bash) || { echo "attest:$1:the guest has no bash"; exit; }; ` +
	`! command -v systemctl > /dev/null || systemctl mask --runtime --now serial-getty@hvc0.service > /dev/null 2>&1; ` +
	`{ setsid sh -c "` + leaveGetty + `; stty raw -echo; echo ` + Marker + `; echo ok >&3; exec $b --norc 3>&-" 3>&1 < /dev/hvc0 > /dev/hvc0 2>&1 & } | { read x; echo "attest:$1:$x"; }`

// leaveGetty moves a shell out of the control group of the login's getty: systemd ends
// what is left in there when the login is over, unless PAM has given that a session. It
// is for the inside of double quotes.
const leaveGetty = `for d in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; ` +
	`do [ ! -e \$d/init.scope/cgroup.procs ] || echo 0 > \$d/init.scope/cgroup.procs; done`

// becomeRoot runs $2 with $1 as root.
const becomeRoot = `[ $(id -u) = 0 ] && exec sh -c "$2" sh "$1"; ` +
	`command -v sudo > /dev/null || { echo "attest:$1:the user is not root, and the guest has no sudo"; exit; }; ` +
	`exec sudo -p "attest $1 password: " sh -c "$2" sh "$1"`

// What a serial console says at a login, at the end of what has come.
var (
	loginPrompt      = regexp.MustCompile(`(?i)(?:^|\n)[^\n]*login: *$`)
	notLogin         = regexp.MustCompile(`(?i)last login: *$`)
	anyPrompt        = regexp.MustCompile(`(?i)login:|press enter`)
	passwordPrompt   = regexp.MustCompile(`(?:^|\n)[^\n]*\S: *$`)
	shellPrompt      = regexp.MustCompile(`(?:^|\n)[^\n]*[#$%>] *$`)
	passphrasePrompt = regexp.MustCompile(`(?i)(?:unlock|passphrase)[^\n]*: *$`)
	sudoPrompt       = regexp.MustCompile(`attest (\w+) password: $`)
	loginAnswer      = regexp.MustCompile(`attest:(\w+):([^\n]*)\n`)
	terminalEscapes  = regexp.MustCompile(`\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])|[\r\x00\x07]`)
	bootBanner       = regexp.MustCompile(`(?:^|\n)(?:\[ +0\.0+\] )?Linux version \d`)
)

// maxRefusals is how often a login may be refused: prompts time out in a slow guest.
const maxRefusals = 2

// A login is what comes from a guest's serial console, and what is typed there.
type login struct {
	Login
	door *Door

	mu      sync.Mutex
	text    []byte // since the last thing that was typed; the end of it
	boot    int    // counts boots of the guest
	changed chan struct{}
	offered bool // there was a prompt
}

func newLogin(opt Login, d *Door) *login {
	return &login{Login: opt, door: d, changed: make(chan struct{})}
}

// Write takes what the guest writes to its serial console. It never fails.
func (l *login) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := len(l.text)
	l.text = append(l.text, p...)
	if from := max(0, before-200); bootBanner.Match(l.text[from:]) && !bootBanner.Match(l.text[from:before]) {
		l.boot++
		l.offered = false
	}
	l.offered = l.offered || loginPrompt.Match(l.text[max(0, before-200):])
	l.text = keepEnd(l.text)
	l.wake()
	return len(p), nil
}

// state reports whether there was a login prompt, and returns what is closed when more comes.
func (l *login) state() (prompt bool, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.offered, l.changed
}

// asksPassphrase reports whether the last that the guest said is a question for the
// passphrase of a disk, as initrds ask it.
func (l *login) asksPassphrase() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return passphrasePrompt.MatchString(clean(l.text))
}

func (l *login) wake() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// rebooted says that the guest boots: there will be a login again.
func (l *login) rebooted() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.boot++
	l.text, l.offered = nil, false
	l.wake()
}

// run logs in once in each boot. A guest that goes on from a snapshot needs no login
// until it boots.
func (l *login) run(ctx context.Context, saved bool) {
	boot := -1
	if saved {
		boot = 0
	}
	for {
		l.mu.Lock()
		now, changed := l.boot, l.changed
		l.mu.Unlock()
		if now != boot {
			boot = now
			if err := l.enter(ctx, boot); err != nil {
				l.Refused(err)
			}
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// enter logs in and opens the door. It returns nil also if the guest boots meanwhile.
func (l *login) enter(ctx context.Context, boot int) error {
	s := &loginAttempt{login: l, ctx: ctx, boot: boot}
	for refused := 1; ; refused++ {
		err := s.once()
		if err == nil || s.over() {
			return nil
		}
		if refused == maxRefusals || s.hopeless {
			return &LoginError{l.door.opt.Machine, l.User, err.Error()}
		}
	}
}

// A loginAttempt is one login in one boot.
type loginAttempt struct {
	*login
	ctx      context.Context
	boot     int
	hopeless bool   // another attempt would end as this one
	step     string // what it waits for
	mute     error  // the console fell silent in an attempt
}

// at notes what it waits for.
func (s *loginAttempt) at(step string) {
	s.step = step
	s.door.setStep(step)
}

// over reports whether the guest boots anew, or is gone.
func (s *loginAttempt) over() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.login.boot != s.boot || s.ctx.Err() != nil
}

func (s *loginAttempt) fail(format string, args ...any) error {
	s.hopeless = true
	return fmt.Errorf(format, args...)
}

// once goes from the prompt to the open door.
func (s *loginAttempt) once() error {
	if s.mute == nil {
		s.at("no login prompt has come on its serial console (ttyS0); the guest needs a getty there, as systemd starts with console=ttyS0")
	}
	if s.Type == nil {
		return s.fail("it takes no input")
	}
	if s.prompt() == "" {
		if s.over() {
			return nil
		}
		return s.fail("%w", s.mute)
	}
	s.at(fmt.Sprintf("the login on its serial console does not take the user %q", s.User))
	answer, err := s.ask(s.User, func(text string) string {
		switch {
		case loginPrompt.MatchString(text) && !notLogin.MatchString(text):
			return "again"
		case shellPrompt.MatchString(text):
			return "shell"
		case passwordPrompt.MatchString(text) && !notLogin.MatchString(text):
			return "password"
		}
		return ""
	})
	if answer == "password" {
		answer, err = s.password()
	}
	if err != nil || answer == "" {
		return err
	}
	if answer == "again" {
		return fmt.Errorf("the login refuses the user %q", s.User)
	}
	return s.openDoor()
}

// password answers the question for it.
func (s *loginAttempt) password() (string, error) {
	s.at("the login on its serial console has got the password, and no shell came")
	said := ""
	answer, err := s.ask(s.Password, func(text string) string {
		said = text
		switch {
		case notLogin.MatchString(text):
			return ""
		case loginPrompt.MatchString(text):
			return "again"
		case shellPrompt.MatchString(text):
			return "shell"
		case passwordPrompt.MatchString(text):
			return "another"
		}
		return ""
	})
	switch answer {
	case "again":
		return "", fmt.Errorf("the password is refused (%q); see user and password of the machine", tidy(said))
	case "another":
		return "", s.fail("it asks for something else than user and password: %q", tidy(said))
	}
	return answer, err
}

// openDoor has the shell of the login make the root shell.
func (s *loginAttempt) openDoor() error {
	s.at("attest has logged in on its serial console, and the root shell that it starts there does not come")
	word := rand.Text()
	line := fmt.Sprintf("exec sh -c '%s' sh %s '%s'", becomeRoot, word, loginScript)
	asked := false
	result := ""
	see := func(text string) string {
		for _, found := range loginAnswer.FindAllStringSubmatch(text, -1) {
			if found[1] == word {
				result = strings.TrimSpace(found[2])
				return "answer"
			}
		}
		if found := sudoPrompt.FindStringSubmatch(text); found != nil && found[1] == word {
			return "password"
		}
		return ""
	}
	answer, err := s.ask(line, see)
	for err == nil && answer == "password" {
		if asked {
			return s.fail("sudo refuses the password of %s", s.User)
		}
		asked = true
		answer, err = s.ask(s.Password, see)
	}
	switch {
	case err != nil || answer == "":
		return err
	case result == "":
		return s.fail("no root shell can be started on /dev/hvc0")
	case result != "ok":
		return s.fail("%s", printable.Line(result))
	}
	return nil
}

// prompt waits for the login's prompt, which other messages may have run over. It is empty if the
// boot is over, or if a console that fell silent at a login before stays so.
func (s *loginAttempt) prompt() string {
	for quiets := 1; ; quiets++ {
		answer, quiet := s.await(s.Patience, func(text string) string {
			if loginPrompt.MatchString(text) && !notLogin.MatchString(text) {
				return "login"
			}
			return ""
		})
		if !quiet || s.mute != nil && quiets == quietLimit {
			return answer
		}
		s.mu.Lock()
		hidden := anyPrompt.Match(s.text)
		s.mu.Unlock()
		if hidden {
			s.send("") // a line, for another prompt
		}
	}
}

// ask types a line and waits for what it leads to; an empty answer is the end of the
// boot. A console that says nothing for long is another attempt's.
func (s *loginAttempt) ask(line string, see func(string) string) (string, error) {
	if err := s.send(line); err != nil {
		return "", err
	}
	answer, quiet := s.await(quietLimit*s.Patience, see)
	if quiet {
		s.mu.Lock()
		said := tidy(clean(s.text))
		s.mu.Unlock()
		s.send("")
		s.mute = fmt.Errorf("%s; the last on it: %q", s.step, said)
		return "", s.mute
	}
	return answer, nil
}

// quietLimit is for a console on which something was typed: a guest may take its time to
// check a password.
const quietLimit = 6

func (s *loginAttempt) send(line string) error {
	s.mu.Lock()
	s.text = nil
	s.mu.Unlock()
	return s.Type(s.ctx, []byte(line+"\r"))
}

// settled is the share of its patience for which a console must have said nothing more for
// its last line to count: a line comes in pieces, and some end as a prompt does.
const settled = 20

// await blocks until see finds something, which it returns, nothing has come for a while
// (quiet), or the boot is over.
func (s *loginAttempt) await(patience time.Duration, see func(text string) string) (found string, quiet bool) {
	for {
		s.mu.Lock()
		text, changed, over := clean(s.text), s.changed, s.login.boot != s.boot
		s.mu.Unlock()
		if over {
			return "", false
		}
		wait := patience
		if found = see(text); found != "" {
			wait = s.Patience / settled
		}
		timer := time.NewTimer(wait)
		select {
		case <-changed:
			timer.Stop()
		case <-timer.C:
			return found, found == ""
		case <-s.ctx.Done():
			timer.Stop()
			return "", false
		}
	}
}

// clean is what a terminal's text says, without its escapes.
func clean(text []byte) string { return string(terminalEscapes.ReplaceAll(text, nil)) }

// tidy is the last of what was said, on one line.
func tidy(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	return printable.Line(text[max(0, len(text)-200):])
}
