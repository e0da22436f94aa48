//go:build !amd64

package boot

// rdtsc reads nothing: what counts on other processors is not what an emulated
// x86 counts.
func rdtsc() uint64 { return 0 }
