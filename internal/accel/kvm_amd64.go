package accel

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// KVM's ioctls and structures (linux/kvm.h, asm/kvm.h of x86).
const (
	kvmGetAPIVersion       = 0xAE00
	kvmCreateVM            = 0xAE01
	kvmGetVCPUMmapSize     = 0xAE04
	kvmCreateVCPU          = 0xAE41
	kvmSetUserMemoryRegion = 0x4020AE46
	kvmRun                 = 0xAE80
	kvmGetRegs             = 0x8090AE81
	kvmSetRegs             = 0x4090AE82
	kvmGetSregs            = 0x8138AE83
	kvmSetSregs            = 0x4138AE84

	kvmAPIVersion = 12
	kvmExitHLT    = 5
	kvmExitIntr   = 10

	runImmediateExit = 1 // offsets in struct kvm_run
	runExitReason    = 8
)

type kvmMemoryRegion struct {
	slot, flags   uint32
	guestPhysAddr uint64
	memorySize    uint64
	userspaceAddr uint64
}

type kvmRegs struct {
	rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp uint64
	r8, r9, r10, r11, r12, r13, r14, r15   uint64
	rip, rflags                            uint64
}

// kvmSregs is struct kvm_sregs: the code segment is the first of the segments
// (base uint64, limit uint32, selector uint16, …).
type kvmSregs [0x138]byte

const (
	csBase     = 0
	csSelector = 12
)

// probeLoop runs in real mode: dec ecx; jnz back; hlt.
var probeLoop = []byte{0x66, 0x49, 0x75, 0xFC, 0xF4}

const (
	probeAddr  = 0x1000
	probeTurns = 2_000_000 // of two instructions each: 1 to 2 ms in hardware
)

// kvmRate runs a loop in a guest and returns its speed in instructions per
// second.
func kvmRate(ctx context.Context) (float64, error) {
	kvm, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer kvm.Close()
	if v, err := ioctl(kvm.Fd(), kvmGetAPIVersion, nil); err != nil || v != kvmAPIVersion {
		return 0, fmt.Errorf("KVM API version %d, want %d (%v)", v, kvmAPIVersion, err)
	}
	vmFd, err := ioctl(kvm.Fd(), kvmCreateVM, nil)
	if err != nil {
		return 0, fmt.Errorf("create a virtual machine: %w", err)
	}
	defer unix.Close(int(vmFd))
	memory, err := unix.Mmap(-1, 0, 0x1000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_SHARED)
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(memory)
	copy(memory, probeLoop)
	region := kvmMemoryRegion{guestPhysAddr: probeAddr, memorySize: uint64(len(memory)), userspaceAddr: uint64(uintptr(unsafe.Pointer(&memory[0])))}
	if _, err := ioctl(vmFd, kvmSetUserMemoryRegion, unsafe.Pointer(&region)); err != nil {
		return 0, fmt.Errorf("set the memory of the virtual machine: %w", err)
	}
	vcpu, err := ioctl(vmFd, kvmCreateVCPU, nil)
	if err != nil {
		return 0, fmt.Errorf("create a virtual CPU: %w", err)
	}
	defer unix.Close(int(vcpu))
	size, err := ioctl(kvm.Fd(), kvmGetVCPUMmapSize, nil)
	if err != nil {
		return 0, err
	}
	shared, err := unix.Mmap(int(vcpu), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(shared)
	var sregs kvmSregs
	if _, err := ioctl(vcpu, kvmGetSregs, unsafe.Pointer(&sregs)); err != nil {
		return 0, err
	}
	clear(sregs[csBase : csBase+8])
	clear(sregs[csSelector : csSelector+2])
	if _, err := ioctl(vcpu, kvmSetSregs, unsafe.Pointer(&sregs)); err != nil {
		return 0, err
	}
	regs := kvmRegs{rip: probeAddr, rflags: 2, rcx: probeTurns}
	if _, err := ioctl(vcpu, kvmSetRegs, unsafe.Pointer(&regs)); err != nil {
		return 0, err
	}
	return timeLoop(ctx, vcpu, shared)
}

// timeLoop runs the virtual CPU until it halts, the budget is spent or ctx ends.
func timeLoop(ctx context.Context, vcpu uintptr, shared []byte) (float64, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ctx, cancel := context.WithTimeout(ctx, probeBudget)
	defer cancel()
	tid := unix.Gettid()
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		// The runtime uses SIGURG to interrupt its own threads and takes it
		// from others too; here it ends KVM_RUN.
		shared[runImmediateExit] = 1
		unix.Tgkill(os.Getpid(), tid, unix.SIGURG)
	})
	defer func() {
		if !stop() {
			<-stopped // it writes to shared
		}
	}()
	start := time.Now()
	for {
		_, err := ioctl(vcpu, kvmRun, nil)
		elapsed := time.Since(start)
		reason := *(*uint32)(unsafe.Pointer(&shared[runExitReason]))
		switch {
		case err == unix.EINTR || err == unix.EAGAIN || err == nil && reason == kvmExitIntr:
			if ctx.Err() == nil {
				continue
			}
		case err != nil:
			return 0, fmt.Errorf("run the virtual CPU: %w", err)
		case reason != kvmExitHLT:
			return 0, fmt.Errorf("the virtual CPU stopped for reason %d, want %d (HLT)", reason, kvmExitHLT)
		}
		var regs kvmRegs
		if _, err := ioctl(vcpu, kvmGetRegs, unsafe.Pointer(&regs)); err != nil {
			return 0, err
		}
		done := probeTurns - min(regs.rcx&0xffffffff, probeTurns)
		return max(2*float64(done), 1) / elapsed.Seconds(), nil
	}
}

// ioctl takes a pointer, not a number: the stack on which arg may be can move.
func ioctl(fd, request uintptr, arg unsafe.Pointer) (uintptr, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg))
	if errno != 0 {
		return 0, errno
	}
	return r, nil
}
