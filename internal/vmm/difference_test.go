package vmm

import "testing"

func TestDifference(t *testing.T) {
	for _, tt := range []struct{ a, b, was, is string }{
		{"one\ntwo\nthree", "one\n2\n3", "two", "2"},
		{"one", "one\ntwo", "nothing", "two"},
		{"one\ntwo", "one", "two", "nothing"},
		{"", "one", "", "one"},
	} {
		if was, is := Difference(tt.a, tt.b); was != tt.was || is != tt.is {
			t.Errorf("%q and %q: got %q, %q; want %q, %q", tt.a, tt.b, was, is, tt.was, tt.is)
		}
	}
}
