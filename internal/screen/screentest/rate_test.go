package screentest

import "testing"

func TestErrors(t *testing.T) {
	for _, tt := range []struct {
		want, read string
		wrong, all int
	}{
		{"login: root", "login:\n  root", 0, 11},
		{"login", "logn", 1, 5},
		{"login", "1ogin", 1, 5},
		{"login", "llogin", 1, 5},
		{"login", "", 5, 5},
		{"", "login", 5, 0},
		{"kitten", "sitting", 3, 6},
		{"größer", "groBer", 2, 6},
	} {
		if wrong, all := Errors(tt.want, tt.read); wrong != tt.wrong || all != tt.all {
			t.Errorf("%q, %q: %d of %d, want %d of %d", tt.want, tt.read, wrong, all, tt.wrong, tt.all)
		}
	}
}
