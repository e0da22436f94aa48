package vmm

import "strings"

// Difference returns the first lines in which two descriptions of a machine differ,
// such as fingerprints. A line that one of them lacks is "nothing".
func Difference(a, b string) (string, string) {
	as, bs := strings.Split(a, "\n"), strings.Split(b, "\n")
	line := func(lines []string, i int) string {
		if i < len(lines) {
			return lines[i]
		}
		return "nothing"
	}
	i := 0
	for i < min(len(as), len(bs)) && as[i] == bs[i] {
		i++
	}
	return line(as, i), line(bs, i)
}
