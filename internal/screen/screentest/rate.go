package screentest

import "strings"

// Errors is how many characters of a text have to be changed, added and removed to get from what was read to what is
// there (Levenshtein), and how many characters are there. Blanks and line breaks count as one blank.
func Errors(want, read string) (wrong, all int) {
	a, b := []rune(strings.Join(strings.Fields(want), " ")), []rune(strings.Join(strings.Fields(read), " "))
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i, r := range a {
		above, left := row[0], i+1
		row[0] = left
		for j, s := range b {
			n := above
			if r != s {
				n = 1 + min(above, row[j+1], left)
			}
			above, left, row[j+1] = row[j+1], n, n
		}
	}
	return row[len(b)], len(a)
}
