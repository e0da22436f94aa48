package operation

import (
	"slices"
	"strings"
)

// DidYouMean is the end of an error about a name that does not exist, such as
// "; did you mean succeed?". It is empty when nothing is similar.
func DidYouMean(name string, known []string) string {
	if best := nearest(name, known); best != "" {
		return "; did you mean " + best + "?"
	}
	return ""
}

// nearest is the first known name that has all words of the name, such as
// wait_for_open_port for wait_for_port; or else the one with the smallest edit
// distance, if that is small enough for a slip.
func nearest(name string, known []string) string {
	if words := strings.Split(name, "_"); len(words) > 1 {
		for _, k := range known {
			if containsAll(strings.Split(k, "_"), words) {
				return k
			}
		}
	}
	best, limit := "", min(3, max(1, len(name)/3))
	for _, k := range known {
		if d := distance(strings.ToLower(name), strings.ToLower(k)); d <= limit {
			best, limit = k, d-1
		}
	}
	return best
}

func containsAll(list, part []string) bool {
	for _, p := range part {
		if !slices.Contains(list, p) {
			return false
		}
	}
	return true
}

// distance counts the insertions, deletions, replacements and swaps of
// neighbours that turn a into b (optimal string alignment).
func distance(a, b string) int {
	before, last := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
