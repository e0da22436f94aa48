package test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attest-vm/attest"
)

var screens = flag.Bool("screens", false, "run the tests that look at real screens")

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
	if !*screens {
		t.Skip("make test-screens looks at real screens")
	}
	t.Parallel()
	lab := attest.New(t, attest.MachineConfig{
		Name:         "m",
		StartCommand: "exec qemu-system-x86_64 -m 64 -vga std -drive format=raw,if=virtio,file=" + bootMenu(t),
		Networks:     []int{}, Boot: attest.BootCold,
	})
	m := lab.Machine("m")
	m.WaitForText(`GNU GRUB`, attest.Timeout(2*time.Minute))
	m.WaitForText(`\*The first system`)
	m.SendKey("down")
	m.WaitForText(`\*The second system`)
	m.SendKey("ret")
	m.WaitForText(`^ *You have chosen the second\.`)
	if text := m.ScreenText(); strings.Contains(text, "first system") {
		t.Errorf("the menu is still there:\n%s", text)
	}
}
