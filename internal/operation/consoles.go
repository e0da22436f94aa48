package operation

import (
	"context"
	"fmt"
	"image"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/keyboard"
	"github.com/attest-vm/attest/internal/vmm"
)

var (
	ttyParam   = Param{Name: "tty", Type: String, Doc: "a virtual terminal, `\"1\"` to `\"63\"`"}
	delayParam = Param{Name: "delay", Type: Duration, Default: 10 * time.Millisecond, Doc: "how long a key is held down, and the pause after it"}
	// regionParam is a part of the screen.
	regionParam = Param{Name: "region", Type: Ints, Default: Absent, Check: checkRegion, Doc: "look only at this part of the screen: `[x, y, width, height]`, in pixels from the upper left corner"}
	regexDoc    = "a regular expression in Go's syntax; `^` and `$` match at lines"
)

var consolesTable = []*Operation{
	{
		Name: "get_console_log", Subject: "Consoles", Result: String,
		Doc:  "Returns the output of the serial console since the machine was started.",
		call: func(_ context.Context, t target, _ Args) (any, error) { return t.machine.ConsoleLog(), nil },
	},
	{
		Name: "send_console", Subject: "Consoles", Result: None, Needs: vmm.CanListen,
		Params: []Param{{Name: "chars", Type: String, Doc: "what to type; `\"\\n\"` is the return key"}},
		Doc: "Types on the serial console.\n\n" +
			"The program that reads `/dev/ttyS0` in the guest gets the text. The guest need not have booted. attest's own images have no login there: the console is a log.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.SendConsole(ctx, a.String("chars"))
		},
	},
	{
		Name: "get_tty_text", Subject: "Consoles", Result: String,
		Params: []Param{ttyParam},
		Doc: "Returns the lines that a virtual terminal shows now, each padded with blanks to the width of the terminal.\n\n" +
			"It needs no screen. Terminal 1 has a login in attest's own images.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return t.machine.TTYText(ctx, a.String("tty"))
		},
	},
	{
		Name: "wait_until_tty_matches", Subject: "Consoles", Result: None,
		Params: []Param{ttyParam, {Name: "regexp", Type: String, Doc: regexDoc}, limitParam},
		Doc: "Waits until the text of a virtual terminal, as `get_tty_text` returns it, matches.\n\n" +
			"The kernel notifies the wait when the terminal changes. While the guest does not answer (it boots, hangs, or its kernel has panicked), `1` is read from the console on the machine's screen, if there is one. " +
			"The error has the terminal's text, and a screenshot if the machine has a screen.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.WaitUntilTTYMatches(ctx, a.String("tty"), a.String("regexp"), a.limit())
		},
	},
	{
		Name: "dump_tty_contents", Subject: "Consoles", Result: None,
		Params: []Param{ttyParam},
		Doc:    "Writes the text of a virtual terminal to the log of the run.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.DumpTTYContents(ctx, a.String("tty"))
		},
	},
	{
		Name: "send_monitor_command", Subject: "Consoles", Result: String, Needs: vmm.CanInteract,
		Params: []Param{{Name: "command", Type: String, Doc: "a command of QEMU's monitor (HMP), such as `info status`"}},
		Doc: "Runs a command of QEMU's monitor, and returns its output.\n\n" +
			"It works before the guest has booted and on a paused machine. attest does not notice what the command changes. " +
			"Where the kernel has Landlock, QEMU opens only its machine's files and writes to the machine's directory, which is its current one.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return t.machine.SendMonitorCommand(ctx, a.String("command"))
		},
	},
	{
		Name: "qmp_command", Subject: "Consoles", Result: AnyDict, Needs: vmm.CanInteract,
		Params: []Param{
			{Name: "command", Type: String, Doc: "a command of QMP, such as `query-status`"},
			{Name: "arguments", Type: AnyDict, Default: Absent, Nullable: true, Doc: "its arguments"},
		},
		Doc: "Runs a command of QEMU's monitor for programs, and returns its reply: a dict whose `return` is the result. An error of QEMU's fails the operation.\n\n" +
			"It works before the guest has booted and on a paused machine. attest does not notice what the command changes. QEMU's QMP reference lists the commands.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			result, err := t.machine.QMPCommand(ctx, a.String("command"), get[map[string]any](a, "arguments"))
			return map[string]any{"return": result}, err
		},
	},
	{
		Name: "wait_for_qmp_event", Subject: "Consoles", Result: AnyDict, Needs: vmm.CanTell,
		Params: []Param{
			{Name: "event_filter", Type: Filter, Doc: "the name of an event, a dict of fields that it must have (`{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": True}}`), or a function that gets an event and returns whether it matches"},
			{Name: "timeout", Type: Duration, Default: 10 * time.Minute, Doc: "the limit of the wait; the default is longer on a host without hardware virtualisation"},
		},
		Doc: "Waits for a QMP event, and returns it: a dict with `event` (its name), `timestamp`, and usually `data`.\n\n" +
			"It considers the events since the machine was started, or since the last event that it returned. The last 1000 of these are kept. " +
			"The wait fails when the machine ends. QEMU's QMP reference lists the events: `STOP`, `RESUME`, `RESET`, `SHUTDOWN`, `POWERDOWN`, `GUEST_PANICKED`, …",
		call: waitForQMPEvent,
	},
}

func waitForQMPEvent(ctx context.Context, t target, a Args) (any, error) {
	if name, ok := a.values["event_filter"].(string); ok {
		e, err := t.machine.WaitForQMPEventNamed(ctx, name, a.limit())
		return qmpMessage(e), err
	}
	var failed error // of the function
	e, err := t.machine.WaitForQMPEvent(ctx, func(e attest.QMPEvent) bool {
		var ok bool
		ok, failed = a.likes(ctx, "event_filter", qmpMessage(e))
		return ok || failed != nil
	}, a.limit())
	if failed != nil {
		err = failed
	}
	return qmpMessage(e), err
}

// likes asks a Filter that is a dict or a function.
func (a Args) likes(ctx context.Context, name string, v map[string]any) (bool, error) {
	fn := a.Func(name)
	if fn == nil {
		return contains(v, a.values[name]), nil
	}
	switch answer, err := fn(ctx, v); {
	case err != nil:
		return false, err
	case answer == nil, answer == false:
		return false, nil
	case answer == true:
		return true, nil
	default:
		return false, &ArgumentError{a.operation.Signature(), name + " must return True or False, not " + Describe(answer)}
	}
}

// qmpMessage is an event as QEMU sends it.
func qmpMessage(e attest.QMPEvent) map[string]any {
	m := map[string]any{
		"event":     e.Name,
		"timestamp": map[string]any{"seconds": e.Time.Unix(), "microseconds": int64(e.Time.Nanosecond() / 1000)},
	}
	if e.Data != nil {
		m["data"] = e.Data
	}
	return m
}

// contains reports whether got has everything that want has. Lists must be equal.
func contains(got, want any) bool {
	w, ok := want.(map[string]any)
	if !ok {
		return reflect.DeepEqual(got, want)
	}
	g, ok := got.(map[string]any)
	return ok && !slices.ContainsFunc(slices.Collect(maps.Keys(w)), func(k string) bool {
		x, has := g[k]
		return !has || !contains(x, w[k])
	})
}

var keyboardTable = []*Operation{
	{
		Name: "send_key", Subject: "Keyboard", Result: None, Needs: vmm.CanType,
		Params: []Param{
			{Name: "key", Type: String, Doc: "a key or a chord, such as `ret`, `ctrl-alt-delete` or `shift-a`"},
			delayParam,
			{Name: "log", Type: Bool, Default: true, Doc: "False: keep it out of the log of the run"},
			holdParam, keymapParam,
		},
		Doc: "Presses a key, or several at once, and releases them.\n\n" +
			"A key is named as in QEMU, or by the character that it types. See [keyboard.md](keyboard.md).",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			opts := a.keys()
			if !a.Bool("log") {
				opts = append(opts, attest.Unlogged())
			}
			return nil, t.machine.SendKey(ctx, a.String("key"), opts...)
		},
	},
	{
		Name: "send_chars", Subject: "Keyboard", Result: None, Needs: vmm.CanType,
		Params: []Param{{Name: "chars", Type: String, Doc: "the text; `\"\\n\"` is the return key"}, delayParam, holdParam, keymapParam},
		Doc: "Types a text on a keyboard, which has the US layout unless another one is given.\n\n" +
			"If the keyboard lacks a character, the operation fails before the first key. See [keyboard.md](keyboard.md).",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.SendChars(ctx, a.String("chars"), a.keys()...)
		},
	},
}

// keys are the options that delay, hold and keymap stand for.
func (a Args) keys() []attest.KeyOption {
	var opts []attest.KeyOption
	if a.Given("delay") {
		opts = append(opts, attest.Delay(a.Duration("delay")))
	}
	if a.Given("hold") {
		opts = append(opts, attest.Hold(a.Duration("hold")))
	}
	if a.Given("keymap") {
		opts = append(opts, attest.Keymap(a.String("keymap")))
	}
	return opts
}

var (
	holdParam   = Param{Name: "hold", Type: Duration, Default: Absent, Named: true, Doc: "how long each key is held down; as long as `delay` unless given"}
	keymapParam = Param{Name: "keymap", Type: String, Default: Absent, Named: true, Check: checkKeymap, Doc: "the layout that the guest expects of its keyboard: `us`, `gb`, `de` or `fr`; that of `--keymap` unless given"}
)

func checkKeymap(v any) error {
	_, err := keyboard.FindLayout(v.(string))
	return err
}

var pointerTable = []*Operation{
	{
		Name: "mouse_move", Subject: "Pointer", Result: None, Needs: vmm.CanPoint,
		Params: []Param{{Name: "x", Type: Int, Doc: "pixels from the left side of the screen"}, {Name: "y", Type: Int, Doc: "pixels from its top"}},
		Doc:    "Moves the pointer to a place on the screen.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.MouseMove(ctx, a.Int("x"), a.Int("y"))
		},
	},
	{
		Name: "mouse_click", Subject: "Pointer", Result: None, Needs: vmm.CanPoint,
		Params: []Param{
			buttonParam,
			{Name: "at", Type: Ints, Default: Absent, Check: checkPoint, Doc: "where: `[x, y]`, in pixels from the screen's upper left corner; where the pointer is unless given"},
			{Name: "needle", Type: String, Default: Absent, Path: true, Named: true, Doc: "or on this needle, as soon as the screen shows it"},
			{Name: "tag", Type: String, Default: Absent, Named: true, Doc: "only the needles with this tag"},
			{Name: "timeout", Type: Duration, Default: 30 * time.Second, Named: true, Doc: "the limit of the wait for the needle; the default is longer on a host without hardware virtualisation"},
		},
		Doc: "Clicks: presses and releases a button of the pointer ([keyboard.md](keyboard.md#pointer)).",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			opts := []attest.ClickOption{attest.Button(a.String("button")), a.limit(), a.tag()}
			if p := a.Ints("at"); p != nil {
				opts = append(opts, attest.At(p[0], p[1]))
			}
			if a.Given("needle") {
				opts = append(opts, attest.OnNeedle(a.String("needle")))
			}
			return nil, t.machine.MouseClick(ctx, opts...)
		},
	},
	{
		Name: "drag", Subject: "Pointer", Result: None, Needs: vmm.CanPoint,
		Params: []Param{
			{Name: "start", Type: Ints, Check: checkPoint, Doc: "where the button is pressed: `[x, y]`"},
			{Name: "end", Type: Ints, Check: checkPoint, Doc: "where it is released"},
			buttonParam,
		},
		Doc: "Presses a button of the pointer at one place and releases it at another.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			from, to := a.Ints("start"), a.Ints("end")
			return nil, t.machine.Drag(ctx, image.Pt(from[0], from[1]), image.Pt(to[0], to[1]), attest.Button(a.String("button")))
		},
	},
}

var buttonParam = Param{Name: "button", Type: String, Default: "left", Doc: "`left`, `middle`, `right`, `wheel-up` or `wheel-down`"}

func checkPoint(v any) error {
	if p := v.([]int); len(p) != 2 || p[0] < 0 || p[1] < 0 {
		return fmt.Errorf("%v is not a place on a screen; want [x, y]", p)
	}
	return nil
}

var (
	needleParam = Param{Name: "needle", Type: String, Path: true, Doc: "the needle's PNG or JSON file, with or without the extension, or a directory, of whose needles any will do"}
	tagParam    = Param{Name: "tag", Type: String, Default: Absent, Doc: "only the needles with this tag"}
)

var displayParam = Param{Name: "display", Type: String, Default: ":0", Named: true, Doc: "the X server, by the name of its display in the guest; of windows also a Wayland compositor, by the name of its socket, such as `wayland-1`, or `wayland` for the first one"}

func (a Args) display() attest.DisplayOption { return attest.Display(a.String("display")) }

// tag is the option that the argument of this name stands for.
func (a Args) tag() attest.TagOption {
	if !a.Given("tag") {
		return nil
	}
	return attest.Tag(a.String("tag"))
}

func matchDict(m attest.ScreenMatch) map[string]any {
	return map[string]any{
		"needle": m.Needle, "found": m.Found, "similarity": m.Similarity,
		"x": m.Box.Min.X, "y": m.Box.Min.Y, "width": m.Box.Dx(), "height": m.Box.Dy(), "click_x": m.Click.X, "click_y": m.Click.Y,
	}
}

func checkRegion(v any) error {
	if r := v.([]int); len(r) != 4 || r[0] < 0 || r[1] < 0 || r[2] < 1 || r[3] < 1 {
		return fmt.Errorf("%v is not a part of a screen; want [x, y, width, height]", r)
	}
	return nil
}

func (a Args) region() attest.RegionOption {
	if !a.Given("region") {
		return nil
	}
	r := a.Ints("region")
	return attest.Region(image.Rect(r[0], r[1], r[0]+r[2], r[1]+r[3]))
}

var screenTable = []*Operation{
	{
		Name: "screenshot", Subject: "Screen", Result: None, Needs: vmm.CanCapture,
		Params: []Param{{Name: "filename", Type: String, Check: checkBelow, Doc: "where to write it, as PNG: below the directory `TEST/MACHINE` of the output directory (`-o`); `.png` is added to a name without a dot"}},
		Doc: "Writes the machine's screen to a file.\n\n" +
			"The machine needs a screen: `machine(display = True)`. It works before the guest has booted and on a paused machine. " +
			"On a backend whose machines have no screens it is `guest_screenshot`.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.Screenshot(ctx, a.String("filename"))
		},
	},
	{
		Name: "guest_screenshot", Subject: "Screen", Result: String,
		Params: []Param{
			{Name: "filename", Type: String, Default: "guest", Check: checkBelow, Doc: "where to write it, as with `screenshot`"},
			{Name: "method", Type: String, Default: "auto", Doc: "`wayland`, `x11` or `fb` (a framebuffer); `auto` is the first of these that is there"},
			{Name: "display", Type: String, Default: Absent, Doc: "of which X server (`:1`), Wayland compositor (`wayland-1`) or framebuffer (`fb1`); the first one unless given"},
		},
		Doc: "Writes what the guest shows to a file, and returns the method that the picture was taken by.\n\n" +
			"The guest takes the picture, so the machine needs no screen ([screen.md](screen.md#pictures-from-the-guest)). The error names what the guest lacks.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			opts := []attest.PictureOption{attest.Method(a.String("method"))}
			if a.Given("display") {
				opts = append(opts, attest.Display(a.String("display")))
			}
			return t.machine.GuestScreenshot(ctx, a.String("filename"), opts...)
		},
	},
	{
		Name: "get_screen_text", Subject: "Screen", Result: String, Needs: vmm.CanRead,
		Params: []Param{regionParam},
		Doc: "Returns the text on the machine's screen.\n\n" +
			"The text of a console is exact. Other text is read by OCR, which makes mistakes ([screen.md](screen.md#text)). It works before the guest has booted and on a paused machine.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return t.machine.ScreenText(ctx, a.region())
		},
	},
	{
		Name: "get_screen_text_variants", Subject: "Screen", Result: List, Needs: vmm.CanRead,
		Params: []Param{regionParam},
		Doc: "Returns the text on the machine's screen in three variants, one for each way to prepare the picture for OCR: as it is; enlarged, and dark on white wherever the background has one colour (`get_screen_text` returns this one); enlarged, with dark and light exchanged.\n\n" +
			"The text of a console is exact, and the only variant.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return t.machine.ScreenTextVariants(ctx, a.region())
		},
	},
	{
		Name: "wait_for_text", Subject: "Screen", Result: None, Needs: vmm.CanRead,
		Params: []Param{{Name: "regex", Type: String, Doc: regexDoc}, limitParam, regionParam},
		Doc: "Waits until the text on the machine's screen, in one of the variants of `get_screen_text_variants`, matches.\n\n" +
			"It works before the guest has booted. The error has the text, and a screenshot.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.WaitForText(ctx, a.String("regex"), a.limit(), a.region())
		},
	},
	{
		Name: "assert_screen", Subject: "Screen", Result: AnyDict, Needs: vmm.CanShow,
		Params: []Param{needleParam, {Name: "timeout", Type: Duration, Default: 30 * time.Second, Doc: "the limit; the default is longer on a host without hardware virtualisation"}, tagParam},
		Doc: "Waits until the screen shows a needle: a part of a picture, in the format of openQA ([screen.md](screen.md#needles)).\n\n" +
			"It returns a dict with the name of the `needle`, where it is (`x`, `y`, `width`, `height`, and `click_x`, `click_y`), and its `similarity`, from 0 to 1. " +
			"The error has pictures of the screen, the needle and the difference.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			found, err := t.machine.AssertScreen(ctx, a.String("needle"), a.limit(), a.tag())
			return matchDict(found), err
		},
	},
	{
		Name: "wait_for_screen", Subject: "Screen", Result: AnyDict, Needs: vmm.CanShow,
		Params: []Param{needleParam, limitParam, tagParam},
		Doc:    "Is `assert_screen` with the limit that waits have.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			found, err := t.machine.WaitForScreen(ctx, a.String("needle"), a.limit(), a.tag())
			return matchDict(found), err
		},
	},
	{
		Name: "find_on_screen", Subject: "Screen", Result: AnyDict, Needs: vmm.CanShow,
		Params: []Param{needleParam, tagParam},
		Doc: "Looks once for a needle, whose first area may be anywhere on the screen.\n\n" +
			"It returns what `assert_screen` returns, of the place that is most similar, and with `found` whether that is similar enough.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			found, err := t.machine.FindOnScreen(ctx, a.String("needle"), a.tag())
			return matchDict(found), err
		},
	},
	{
		Name: "wait_for_x", Subject: "Screen", Result: None,
		Params: []Param{limitParam, displayParam},
		Doc: "Waits until an X server in the guest takes connections.\n\n" +
			"It needs no program in the guest. It takes the cookie from the server's `-auth` file.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.WaitForX(ctx, a.limit(), a.display())
		},
	},
	{
		Name: "get_window_names", Subject: "Screen", Result: List,
		Params: []Param{displayParam},
		Doc:    "Returns the titles of all titled windows of an X server, the topmost first.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return t.machine.WindowNames(ctx, a.display())
		},
	},
	{
		Name: "wait_for_window", Subject: "Screen", Result: None,
		Params: []Param{{Name: "regexp", Type: String, Doc: "a regular expression in Go's syntax"}, limitParam, displayParam},
		Doc: "Waits until an X server has a window whose title matches.\n\n" +
			"The error has the titles of all windows, and a screenshot if the machine has a screen.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.WaitForWindow(ctx, a.String("regexp"), a.limit(), a.display())
		},
	},
}
