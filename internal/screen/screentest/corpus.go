package screentest

import (
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/image/font"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"

	"github.com/attest-vm/attest/internal/screen/glyph"
)

// A Sample is a screen with known text.
type Sample struct {
	Name    string // "X 9x15, dialog, white on blue"
	Kind    Kind
	Picture *image.RGBA
	Text    string // from top to bottom and from left to right, one line each
}

// A Kind is what draws a screen.
type Kind string

const (
	OnConsole Kind = "console" // cells of one of the firmware's fonts
	OnX       Kind = "X"       // letters of an X server's own fonts
	OnDesktop Kind = "desktop" // letters with grey edges, as of GTK and Qt
)

// The fonts that screens are drawn with, and Debian's packages with them. Those of consoles are in the firmware
// of QEMU's VGA adapter.
const (
	xFonts       = "/usr/share/fonts/X11/misc"
	desktopFonts = "/usr/share/fonts/truetype/dejavu"
	FontPackages = "xfonts-base fonts-dejavu-core"
)

// Corpus draws the screens on which the reading of text is measured.
func Corpus() ([]Sample, error) {
	faces, err := corpusFaces()
	if err != nil {
		return nil, fmt.Errorf("%w; apt-get install %s qemu-system-x86", err, FontPackages)
	}
	var out []Sample
	n := 0 // all texts and colours turn up with fonts of all kinds
	for _, f := range faces {
		for _, l := range layoutsOf(f) {
			c := colours[n%len(colours)]
			text := corpusTexts[n%len(corpusTexts)]
			picture, shown := l.draw(f, c, text)
			out = append(out, Sample{fmt.Sprintf("%s %s, %s, %s", f.kind, f.name, l.name, c.name), f.kind, picture, shown})
			n++
		}
	}
	return out, nil
}

// A typeface is a font in one size.
type typeface struct {
	kind   Kind
	name   string
	face   font.Face
	cells  *glyph.Font // of a console
	height int
}

func corpusFaces() (out []typeface, err error) {
	heights := map[int]bool{}
	for _, f := range glyph.HostFonts("/usr/bin/qemu-system-x86_64") {
		if strings.HasPrefix(f.Name, "VGA firmware") && !heights[f.Height] {
			heights[f.Height] = true
			out = append(out, typeface{OnConsole, fmt.Sprintf("%d×%d", f.Width, f.Height), consoleFace(f), f, f.Height})
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("QEMU has no firmware for a VGA adapter with fonts")
	}
	for _, name := range []string{"5x8", "6x10", "6x13", "7x13", "7x14B", "8x13", "9x15", "10x20"} {
		f, err := readPCF(filepath.Join(xFonts, name+"-ISO8859-1.pcf.gz"))
		if err != nil {
			return nil, err
		}
		out = append(out, typeface{OnX, name, f, nil, f.ascent + f.descent})
	}
	for _, f := range []struct {
		name string
		size float64 // pixels
	}{
		{"DejaVuSans", 10}, {"DejaVuSans", 11}, {"DejaVuSans", 13}, {"DejaVuSans", 16}, {"DejaVuSans-Bold", 13}, {"DejaVuSans-Oblique", 13},
		{"DejaVuSansMono", 11}, {"DejaVuSansMono", 13}, {"DejaVuSansMono-Bold", 12}, {"DejaVuSerif", 13},
	} {
		data, err := os.ReadFile(filepath.Join(desktopFonts, f.name+".ttf"))
		if err != nil {
			return nil, err
		}
		parsed, err := opentype.Parse(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
		face, err := opentype.NewFace(parsed, &opentype.FaceOptions{Size: f.size, DPI: 72, Hinting: font.HintingFull})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
		out = append(out, typeface{OnDesktop, fmt.Sprintf("%s %g", f.name, f.size), face, nil, face.Metrics().Height.Ceil()})
	}
	return out, nil
}

// A colouring is the colours of a screen.
type colouring struct {
	name              string
	ink, paper, title color.RGBA
	titleInk          color.RGBA
}

var colours = []colouring{
	{"black on white", Black, White, color.RGBA{48, 96, 160, 255}, White},
	{"grey on black", Grey, Black, color.RGBA{60, 60, 60, 255}, White},
	{"white on blue", White, color.RGBA{0, 0, 170, 255}, Grey, Black},
	{"dark grey on light grey", color.RGBA{60, 60, 60, 255}, color.RGBA{230, 230, 225, 255}, color.RGBA{205, 205, 200, 255}, color.RGBA{40, 40, 40, 255}},
	{"light on slate", color.RGBA{220, 224, 230, 255}, color.RGBA{46, 52, 64, 255}, color.RGBA{30, 34, 42, 255}, White},
}

// The texts are what installers, logins, kernels and desktops say.
var corpusTexts = [][]string{
	{"Welcome to the installation", "Choose the language to be used for the installation process.", "The selected language will also be the default language", "for the installed system.", "Language: English", "Go Back", "Continue"},
	{"Debian GNU/Linux 12 server tty1", "server login: operator", "Password:", "Login incorrect", "server login: root", "Last login: Mon Nov 2 08:15:42 UTC 2026 on tty1", "root@server:~#"},
	{"Unable to mount root fs on unknown-block(0,0)", "CPU: 0 PID: 1 Comm: swapper/0 Not tainted 6.1.0-28-amd64", "Hardware name: QEMU Standard PC (Q35 + ICH9, 2009)", "Call Trace:", "dump_stack_lvl+0x44/0x5c", "panic+0x118/0x2ed", "Kernel panic - not syncing: VFS"},
	{"Network configuration", "IP address: 192.168.1.17/24", "Gateway: 192.168.1.1", "Name servers: 10.0.0.53 10.0.0.54", "Host name: mail.example.org", "Cancel", "Apply"},
	{"Software updates are available", "17 packages can be upgraded (42.8 MB to download).", "Restart the computer after the update?", "Show details", "Remind me later", "Install now"},
	{"File  Edit  View  Search  Terminal  Help", "user@desktop:~$ ls -l /etc/hosts", "-rw-r--r-- 1 root root 221 Nov 27 06:12 /etc/hosts", "user@desktop:~$ systemctl is-active nginx.service", "active", "user@desktop:~$ exit"},
	{"Partition disks", "Guided - use entire disk", "Guided - use entire disk and set up encrypted LVM", "Manual", "SCSI1 (0,0,0) (sda) - 10.7 GB QEMU HARDDISK", "If you continue, the changes will be written to the disks."},
}

// A layout is how text lies on a screen.
type layout struct {
	name string
	draw func(typeface, colouring, []string) (*image.RGBA, string)
}

func layoutsOf(f typeface) []layout {
	if f.kind == OnConsole {
		return []layout{{"text mode", drawCells}, {"framebuffer", drawFramebuffer}, {"text mode", drawCells}, {"dialog", drawDialog}}
	}
	return []layout{{"dialog", drawDialog}, {"page", drawPage}}
}

// drawCells is a text mode of 80×25.
func drawCells(f typeface, c colouring, text []string) (*image.RGBA, string) {
	console := VGA(f.cells)
	console.Ink, console.Paper = c.ink, c.paper
	return console.Draw(strings.Join(text, "\n")), strings.Join(text, "\n")
}

// drawFramebuffer is a console on 1024×768.
func drawFramebuffer(f typeface, c colouring, text []string) (*image.RGBA, string) {
	console := Console{Font: f.cells, Columns: 1024 / f.cells.Width, Rows: 768 / f.cells.Height, Ink: c.ink, Paper: c.paper, Cursor: image.Pt(0, len(text))}
	return console.Draw("\n" + strings.Join(text, "\n\n")), strings.Join(text, "\n")
}

// drawPage is all of a screen with text.
func drawPage(f typeface, c colouring, text []string) (*image.RGBA, string) {
	p := Uniform(image.Pt(800, 600), c.paper)
	y := 30
	for _, line := range text {
		y += f.height * 3 / 2
		write(p, f.face, c.ink, image.Pt(24, y), line)
	}
	return p, strings.Join(text, "\n")
}

// drawDialog is a window with a title and two buttons, on the background of a desktop.
func drawDialog(f typeface, c colouring, text []string) (*image.RGBA, string) {
	p := Uniform(image.Pt(800, 600), color.RGBA{34, 74, 96, 255})
	for y := range p.Rect.Dy() { // which changes from top to bottom
		Fill(p, image.Rect(0, y, p.Rect.Dx(), y+1), color.RGBA{34, uint8(74 + y/20), uint8(96 + y/12), 255})
	}
	title, body, buttons := text[0], text[1:len(text)-2], text[len(text)-2:]
	step := f.height * 3 / 2
	window := image.Rect(60, 80, 740, 80+(len(body)+6)*step)
	Fill(p, window, c.paper)
	Fill(p, image.Rect(window.Min.X, window.Min.Y, window.Max.X, window.Min.Y+2*step), c.title)
	write(p, f.face, c.titleInk, window.Min.Add(image.Pt(12, step+f.height/4)), title)
	y := window.Min.Y + 2*step
	for _, line := range body {
		y += step
		write(p, f.face, c.ink, image.Pt(window.Min.X+20, y), line)
	}
	x := window.Min.X + 20
	for _, b := range buttons {
		width := font.MeasureString(f.face, b).Ceil() + 32
		button := image.Rect(x, y+step, x+width, y+3*step)
		Fill(p, button, c.ink)
		Fill(p, button.Inset(1), c.paper)
		write(p, f.face, c.ink, image.Pt(x+16, y+2*step+f.height/4), b)
		x += width + 40
	}
	return p, strings.Join(append(append([]string{title}, body...), strings.Join(buttons, " ")), "\n")
}

// write draws a line of text, whose letters stand on a point.
func write(p draw.Image, face font.Face, ink color.RGBA, at image.Point, text string) {
	d := font.Drawer{Dst: p, Src: image.NewUniform(ink), Face: face, Dot: fixed.P(at.X, at.Y)}
	d.DrawString(text)
}
