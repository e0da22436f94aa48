package vmm

import "testing"

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{"1K": 1 << 10, "512M": 512 << 20, "2G": 2 << 30, "2GiB": 2 << 30, "16T": 16 << 40} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "1", "G", "0G", "-1G", "1.5G", "1GB", "1g", "1 G", "9999999999999T", "99999999999999999999K"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q is %d bytes", text, got)
		}
	}
}
