//go:build !amd64

package accel

// tsc is 0: QEMU counts something else on other processors.
func tsc() uint64 { return 0 }
