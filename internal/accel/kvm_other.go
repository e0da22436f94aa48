//go:build !amd64

package accel

import (
	"context"
	"errors"
	"runtime"
)

// kvmRate knows the registers of x86 only.
func kvmRate(context.Context) (float64, error) {
	return 0, errors.New("attest cannot measure KVM on " + runtime.GOARCH + "; set " + Env + "=kvm to use it anyway")
}
