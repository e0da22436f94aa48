package starlark

import (
	"strings"
	"testing"

	"github.com/attest-vm/attest/internal/script"
)

// What Python does with % and re, as far as files have it.
func TestFormatAndRe(t *testing.T) {
	f := load(t, `
def same(got, want):
    assert_eq(got, want)

def main():
    same("%.1f" % 2.25, "2.2")
    same("%5.1f|%-6d|%+d|%05d|%x" % (3.14159, 7, 3, -42, 255), "  3.1|7     |+3|-0042|ff")
    same("%s %.2f%%" % ("load", 99.5), "load 99.50%")
    same("%.3s|%5s|%-5s|" % ("abcdef", "a", "b"), "abc|    a|b    |")
    same("%(a).2f %(b)s" % {"a": 1, "b": "x"}, "1.00 x")
    same("%#o %#x %o" % (8, 255, 8), "0o10 0xff 10")
    same("%.2e" % 12345.678, "1.23e+04")
    same("%.3d" % 7, "007")
    same("%5.1f" % float("inf"), " +inf")
    same("%d items" % 3, "3 items")
    same(7 % 3, 1)
    same("%s" % (1,), "1")
    same("%5.1f%s" % (1, "%d"), "  1.0%d")
    text = "%.1f"
    text %= 0.25
    same(text, "0.2")

    m = re.search(r"load: (?P<one>[0-9.]+) ([0-9.]+)", "up 3 days, load: 0.50 1.25")
    same([m.group(), m.group(1), m.group("one"), m.groups()], ["load: 0.50 1.25", "0.50", "0.50", ("0.50", "1.25")])
    same([m.groupdict(), m.start(), m.end(1), m.group(1, 2)], [{"one": "0.50"}, 11, 21, ("0.50", "1.25")])
    same(re.search("x", "abc"), None)
    same(re.match("b", "abc"), None)
    same(re.match("a|b", "abc").group(), "a")
    same(re.fullmatch("a|ab", "ab").group(), "ab")
    same(re.match("(?m)b", "a\nb"), None)
    same(re.search("(a)|b", "b").groups(), (None,))
    same(re.findall("[0-9]+", "a1b22"), ["1", "22"])
    same(re.findall("([a-z])[0-9]", "a1b2"), ["a", "b"])
    same(re.findall("([a-z])([0-9])", "a1b2"), [("a", "1"), ("b", "2")])
    same(re.split(", *", "a, b,c", 1), ["a", "b,c"])
    same(re.sub(r"([a-z])([0-9])", r"\2\g<1>\\", "a1-b2"), "1a\\-2b\\")
    same(re.sub("[0-9]", lambda m: m.group() * 2, "1 2", count = 1), "11 2")
    same(re.sub("(?P<n>[0-9])", r"<\g<n>>", "7"), "<7>")
    same(re.escape("a.b"), "a\\.b")
    same(bool(re.search("a", "a")), True)
`)
	if err := f.Call(t.Context(), &fakeLab{}, "main"); err != nil {
		t.Error(err)
	}
	for body, want := range map[string]string{
		`"%.1f" % "x"`:                 `x.star:1:28: %f format requires float, not string`,
		`"%.1f %d" % 1.5`:              "x.star:1:31: not enough arguments for format string",
		`"%.1f" % (1.5, 2)`:            "x.star:1:28: too many arguments for format string",
		`"%.1q" % 1`:                   "x.star:1:28: unknown conversion %q",
		`"%99999999999999d" % 1`:       "x.star:1:38: %99999999999999d: the largest width and precision are 1000",
		`re.search("(", "x")`:          "x.star:1:28: re.search: error parsing regexp: missing closing ): `(`",
		`re.search("x", "x").group(2)`: "x.star:1:45: match.group: the pattern has no group 2",
		`re.sub("x", r"\1", "x")`:      `x.star:1:25: re.sub: the pattern has no group 1`,
		`re.sub("x", 1, "x")`:          "x.star:1:25: re.sub: repl must be a string or a function, not a int",
	} {
		t.Chdir(write(t, "x.star", "def main(): print(\"\") or "+body+"\n"))
		file, err := Load(t.Context(), "x.star", script.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err = file.Call(t.Context(), &fakeLab{}, "main"); err == nil || !strings.HasPrefix(err.Error(), want[:7]) || !strings.Contains(err.Error(), want[strings.Index(want, ": ")+2:]) {
			t.Errorf("%s: got %v, want %s", body, err, want)
		}
	}
}
