package test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/screen/screentest"
)

var screens = flag.Bool("screens", false, "run the tests that look at real screens")

func needScreens(t *testing.T) {
	t.Helper()
	if !*screens {
		t.Skip("make test-screens looks at real screens; it takes minutes")
	}
	t.Parallel()
}

// bootMenu makes a disk with a GRUB that has a menu, and nothing to boot.
func bootMenu(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	config, core, disk := filepath.Join(dir, "grub.cfg"), filepath.Join(dir, "core.img"), filepath.Join(dir, "disk.img")
	menu := "set timeout=-1\n"
	for _, n := range []string{"first", "second", "third"} {
		menu += fmt.Sprintf("menuentry \"The %s system\" {\n\techo \"You have chosen the %s.\"\n\tsleep 10000\n}\n", n, n)
	}
	if err := os.WriteFile(config, []byte(menu), 0o600); err != nil {
		t.Fatal(err)
	}
	// What the firmware reads first, and behind it all the rest.
	const modules = "normal echo sleep biosdisk memdisk tar"
	out, err := exec.Command("grub-mkstandalone", "--format=i386-pc", "--output="+core, "--locales=", "--fonts=", "--themes=",
		"--modules="+modules, "--install-modules="+modules, "boot/grub/grub.cfg="+config).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var image []byte
	for _, path := range []string{"/usr/lib/grub/i386-pc/boot.img", core} {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		image = append(image, data...)
	}
	image = append(image, make([]byte, 4<<20)...)
	if err := os.WriteFile(disk, image[:len(image)&^511], 0o600); err != nil {
		t.Fatal(err)
	}
	return disk
}

// A boot menu is read and used before any kernel runs.
func TestScreensBootMenu(t *testing.T) {
	needScreens(t)
	lab := attest.New(t, attest.MachineConfig{
		Name:         "m",
		StartCommand: "exec qemu-system-x86_64 -m 64 -vga std -drive format=raw,if=virtio,file=" + bootMenu(t),
		Networks:     []int{}, Boot: attest.BootCold,
	})
	m := lab.Machine("m")
	m.WaitUntilTTYMatches("1", `GNU GRUB`) // there is nobody to ask but the screen
	m.WaitForText(`\*The first system`, attest.Timeout(2*time.Minute))
	m.SendKey("down")
	m.WaitForText(`\*The second system`)
	m.SendKey("ret")
	m.WaitForText(`^ *You have chosen the second\.`)
	if text := m.ScreenText(); strings.Contains(text, "first system") {
		t.Errorf("the menu is still there:\n%s", text)
	}
}

// attest run --keymap is for guests that expect another keyboard: GRUB expects one of the US, and shows which keys were pressed.
func TestScreensKeymap(t *testing.T) {
	needScreens(t)
	disk := bootMenu(t)
	for layout, typed := range map[string]string{"de": "yz-;", "fr": "aqw,", "gb": `a"@~`} {
		t.Run(layout, func(t *testing.T) {
			shown := map[string]string{"de": "zy/<", "fr": "qazm", "gb": `a@"|`}[layout]
			file := filepath.Join(t.TempDir(), "menu_test.star")
			must(t, os.WriteFile(file, []byte(fmt.Sprintf(`m = machine(start_command = "exec qemu-system-x86_64 -m 64 -vga std -drive format=raw,if=virtio,file=%s", networks = [])

def test_typed():
    m.wait_until_tty_matches("1", "GNU GRUB")
    m.send_key("c")
    m.wait_for_text("grub>")
    m.send_chars(%q, delay = 0.1)
    m.wait_for_text(re.escape("grub> " + %q))
`, disk, typed, shown)), 0o600))
			a := start(t, t.TempDir(), nil, attestBinary, "run", "--keymap", layout, file)
			if code := a.exitCodeWithin(t, 10*time.Minute); code != 0 {
				t.Errorf("exit code %d", code)
			}
		})
	}
}

// slow is what starts slowly on an emulated guest.
var slow = attest.Timeout(5 * time.Minute)

// logIn is a person who logs in on the console.
func logIn(t *testing.T, m *attest.TestMachine) {
	t.Helper()
	m.WaitUntilTTYMatches("1", "login: ")
	m.WaitForText("^m login: ", slow) // by its glyphs
	m.Succeed("echo root:secret | chpasswd")
	m.SendChars("root\n")
	m.WaitUntilTTYMatches("1", "Password: ")
	m.SendChars("secret\n")
	m.WaitUntilTTYMatches("1", `root@m:~# `)
	m.SendChars("echo typed > /tmp/typed; echo $((6*7)) is here\n")
	m.WaitForFile("/tmp/typed")
	m.WaitForText("^42 is here$", slow)
}

// A login in text mode, and then the end of the kernel: a person sees why, and so do waits that begin before, and after.
func TestScreensPanic(t *testing.T) {
	needScreens(t)
	out := t.TempDir()
	lab := attest.NewLab(t, attest.LabConfig{OutDir: out, Machines: []attest.MachineConfig{
		{Name: "m", Image: attest.Debian{}, Memory: 512, Networks: []int{}, Display: true},
	}})
	m := lab.Machine("m")
	logIn(t, m)
	m.Succeed("echo 1 > /proc/sys/kernel/sysrq")
	const why = "end Kernel panic - not syncing: sysrq triggered crash"
	ctx := t.Context()
	waited := make(chan error, 2)
	go func() { waited <- m.Machine.WaitForText(ctx, why) }()
	go func() { waited <- m.Machine.WaitUntilTTYMatches(ctx, "1", why) }()
	m.Machine.SendKey(ctx, "alt-sysrq-c") // it waits for a guest that is gone
	if err := errors.Join(<-waited, <-waited); err != nil {
		t.Error(err)
	}
	if err := m.Machine.WaitForShutdown(ctx); err == nil || !strings.Contains(err.Error(), "sysrq triggered crash") {
		t.Errorf("the machine is off: %v", err)
	}
	if text, err := m.Machine.ScreenText(ctx); err != nil || !strings.Contains(text, why) {
		t.Errorf("%v; the screen shows\n%s", err, text)
	}
	if err := m.Machine.WaitUntilTTYMatches(ctx, "1", why); err != nil {
		t.Error(err)
	}
	if pictures, _ := filepath.Glob(filepath.Join(out, "m-panic-*.png")); len(pictures) != 1 {
		t.Errorf("pictures of the panic: %q", pictures)
	}
}

// TestScreensDesktop boots one machine, and each desktop gets a fork of it.
func TestScreensDesktop(t *testing.T) {
	needScreens(t)
	lab := attest.NewLab(t, attest.LabConfig{OutDir: t.TempDir(), Machines: []attest.MachineConfig{{
		Name: "m", Memory: 1024, Networks: []int{}, Display: true,
		Image: attest.Debian{
			Packages: []string{
				"xserver-xorg-core", "xserver-xorg-input-libinput", "x11-utils", "xterm", "icewm", "dillo", "xfonts-base",
				"weston", "sway", "cage", "xwayland", "seatd", "grim", "foot", "fonts-dejavu-core",
			},
			Kernel: "debian:linux-image-amd64",
		},
		// wlroots needs a driver that imports buffers. The VGA adapter's does not.
		QEMU: []string{"-device", "virtio-gpu-pci,max_outputs=1"},
	}}})
	m := lab.Machine("m")
	logIn(t, m)
	m.Succeed("systemctl stop getty@tty1; useradd -m -G video ann")
	for _, d := range []struct {
		name string
		look func(*testing.T, *attest.TestMachine)
	}{{"framebuffer", framebuffer}, {"Xorg", xorg}, {"weston", weston}, {"sway", sway}, {"cage", cage}} {
		t.Run(d.name, func(t *testing.T) {
			m := lab.Fork(t).Machine("m")
			t.Cleanup(func() {
				if t.Failed() {
					r, err := m.Machine.Execute(context.WithoutCancel(t.Context()), "journalctl -b -n 150 --no-pager; tail -n 50 /var/log/Xorg.0.log", attest.Timeout(time.Minute))
					t.Logf("the guest's journal (%v):\n%s", err, r.Stdout)
				}
			})
			d.look(t, m)
		})
	}
}

// litBy waits until a picture that the guest has taken shows something.
func litBy(t *testing.T, m *attest.TestMachine, method string, opts ...attest.PictureOption) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "guest.png")
	for deadline := time.Now().Add(5 * time.Minute); ; {
		if got := m.GuestScreenshot(path, opts...); got != method {
			t.Fatalf("the picture was taken by %q, want %q", got, method)
		}
		if litPixels(t, path) >= 100 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: the picture stays dark", method)
		}
	}
}

// gpu is the name of the guest's graphics card whose driver matches a pattern of the shell.
func gpu(m *attest.TestMachine, driver string) string {
	return strings.TrimSpace(m.Succeed(`for c in /sys/class/drm/card?; do case $(readlink $c/device/driver) in */` + driver + `) basename $c; esac; done`))
}

func framebuffer(t *testing.T, m *attest.TestMachine) {
	m.Succeed("printf 'on the framebuffer' > /dev/tty1")
	litBy(t, m, "fb")
	_, err := m.Machine.GuestScreenshot(t.Context(), "none", attest.Method("x11"))
	if err == nil || !strings.Contains(err.Error(), "no X server on display :0") {
		t.Errorf("got %v", err)
	}
}

// button is a picture on a page, and a needle.
func button(t *testing.T) (png, needle string) {
	t.Helper()
	p := screentest.Uniform(image.Pt(140, 50), color.RGBA{20, 110, 60, 255})
	screentest.Fill(p, image.Rect(6, 6, 134, 44), color.RGBA{240, 240, 230, 255})
	for i := range 6 {
		screentest.Fill(p, image.Rect(16+18*i, 12, 28+18*i, 20+3*i), color.RGBA{150, 30, uint8(40 * i), 255})
	}
	needle = filepath.Join(t.TempDir(), "button")
	writePNG(t, needle+".png", p)
	area := `{"area": [{"type": "match", "xpos": 0, "ypos": 0, "width": 140, "height": 50, "margin": 1300}], "tags": ["button"]}`
	if err := os.WriteFile(needle+".json", []byte(area), 0o600); err != nil {
		t.Fatal(err)
	}
	return needle + ".png", needle
}

func writePNG(t *testing.T, path string, p image.Image) {
	t.Helper()
	f, err := os.Create(path)
	if err == nil {
		err = png.Encode(f, p)
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A desktop with a window manager, a browser and a terminal: a picture on a page is found and clicked, and a text is typed
// into the terminal and read.
func xorg(t *testing.T, m *attest.TestMachine) {
	m.Succeed("cat > /etc/X11/xorg.conf", attest.Stdin(strings.NewReader(`Section "Device"
	Identifier "vga"
	Driver "modesetting"
	Option "AccelMethod" "none"
	Option "kmsdev" "/dev/dri/`+gpu(m, "bochs-drm")+`"
EndSection
`)))
	m.Succeed("systemd-run --unit=x Xorg :0 vt7 -noreset -ac")
	m.WaitForX(slow)
	run := func(unit, command string) {
		m.Succeed("systemd-run --unit=" + unit + " --setenv=DISPLAY=:0 --setenv=HOME=/root " + command)
	}
	run("wm", "icewm")
	m.WaitForWindow("^TaskBar$", slow)
	picture, needle := button(t)
	m.CopyFromHost(picture, "/root/button.png")
	for name, page := range map[string]string{
		"one": "<title>First page</title><body><h1>The first page</h1><p><a href=two.html><img src=button.png width=140 height=50></a></body>",
		"two": "<title>Second page</title><body><h1>The second page</h1><p>Nothing else is here.</body>",
	} {
		m.Succeed("cat > /root/"+name+".html", attest.Stdin(strings.NewReader(page)))
	}
	run("terminal", "xterm -T terminal -fn 10x20 -geometry 50x20+10+30")
	m.WaitForWindow("^terminal$", slow)
	run("browser", "dillo -g 600x400+560+40 /root/one.html")
	m.WaitForWindow("First page", slow)
	found := m.WaitForScreen(needle, slow)
	m.MouseClick(attest.OnNeedle(needle), slow)
	m.WaitForWindow("Second page", slow)
	m.WaitForText("The second page", slow)
	if again := m.FindOnScreen(needle); again.Found {
		t.Errorf("the button is still there, at %v; it was at %v", again.Box, found.Box)
	}
	m.MouseClick(attest.At(200, 200)) // icewm's focus follows the click
	m.WaitUntilSucceeds(`DISPLAY=:0 xprop -id "$(DISPLAY=:0 xprop -root _NET_ACTIVE_WINDOW | grep -o '0x[0-9a-f]*$')" WM_NAME | grep terminal`, slow)
	m.SendChars("echo The text that was typed | tee typed\n")
	m.WaitForText("^The text that was typed", slow)
	if got := m.Succeed("cat /root/typed /typed 2>/dev/null || true"); got != "The text that was typed\n" {
		t.Errorf("the terminal got %q", got)
	}
	litBy(t, m, "x11")
}

// compositor starts a Wayland compositor of a user as a service.
func compositor(m *attest.TestMachine, user, command string, env ...string) {
	m.Succeed("install -d -m 700 -o " + user + " /run/desktop")
	args := "systemd-run --unit=compositor --uid=" + user
	for _, e := range append(env, "XDG_RUNTIME_DIR=/run/desktop") {
		args += " --setenv=" + e
	}
	m.Succeed(args + " " + command)
	m.WaitUntilSucceeds("ls /run/desktop/wayland-?", slow)
}

func weston(t *testing.T, m *attest.TestMachine) {
	compositor(m, "root", "weston --tty=7 --backend=drm-backend.so --drm-device="+gpu(m, "bochs-drm")+" --use-pixman --debug --continue-without-input")
	litBy(t, m, "wayland")
	_, err := m.Machine.WindowNames(t.Context(), attest.Display("wayland"))
	if err == nil || !strings.Contains(err.Error(), "does not tell of its windows") {
		t.Errorf("got %v", err)
	}
}

// wlroots is the environment of the compositors that are made of it. They refuse to be root's, and
// get the cards from seatd.
func wlroots(m *attest.TestMachine) []string {
	return []string{"LIBSEAT_BACKEND=seatd", "WLR_BACKENDS=drm", "WLR_RENDERER=pixman", "WLR_LIBINPUT_NO_DEVICES=1", "WLR_DRM_DEVICES=/dev/dri/" + gpu(m, "virtio*")}
}

func sway(t *testing.T, m *attest.TestMachine) {
	m.Succeed("echo 'exec foot -T inside' > /tmp/sway.conf")
	compositor(m, "ann", "sway -c /tmp/sway.conf", wlroots(m)...)
	m.WaitForWindow("^inside$", attest.Display("wayland"), slow)
	if names := m.WindowNames(attest.Display("wayland-1")); !slices.Equal(names, []string{"inside"}) {
		t.Errorf("windows %q", names)
	}
	litBy(t, m, "wayland")
}

func cage(t *testing.T, m *attest.TestMachine) {
	compositor(m, "ann", "cage -- foot -T inside", wlroots(m)...)
	litBy(t, m, "wayland", attest.Display("wayland"))
}
