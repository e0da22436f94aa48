package qemu

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

// A program is machine code for a guest that does nothing else. The methods
// below append instructions that mean the same in real mode and in protected
// mode, as far as the two need them; wide is 32-bit protected mode.
type program struct {
	wide bool
	code []byte
}

// The address at which code runs: where a BIOS puts a boot sector, and where
// the ELF below asks to be put.
const (
	sectorBase = 0x7c00
	kernelBase = 0x100000
)

func (p *program) bytes(b ...byte) *program { p.code = append(p.code, b...); return p }

// half prefixes an instruction that works on 16 bits.
func (p *program) half(b ...byte) *program {
	if p.wide {
		p.bytes(0x66)
	}
	return p.bytes(b...)
}

// out16 writes a value to a port.
func (p *program) out16(port, value uint16) *program {
	p.port(port)
	p.half(0xb8, byte(value), byte(value>>8)) // mov ax, value
	return p.half(0xef)                       // out dx, ax
}

func (p *program) port(port uint16) *program { return p.half(0xba, byte(port), byte(port>>8)) } // mov dx, port

// print writes to the first serial port.
func (p *program) print(text string) *program {
	p.port(0x3f8)
	for _, c := range []byte(text) {
		p.bytes(0xb0, c, 0xee) // mov al, c; out dx, al
	}
	return p
}

// printCommandLine writes the kernel's command line, which a PVH kernel finds
// through EBX (xen/include/public/arch-x86/hvm/start_info.h).
func (p *program) printCommandLine() *program {
	p.bytes(0x8b, 0x73, 0x18) // mov esi, [ebx+24]
	p.port(0x3f8)
	// 1: lodsb; test al,al; jz 2f; out dx,al; jmp 1b; 2:
	return p.bytes(0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8)
}

// halt stops for ever.
func (p *program) halt() *program { return p.bytes(0xfa, 0xf4, 0xeb, 0xfd) } // cli; hlt; jmp $-1

// count increments the counter at counterAddr for ever.
func (p *program) count() *program {
	return p.bytes(0xff, 0x05, 0x00, 0x00, 0x20, 0x00, 0xeb, 0xf8) // inc dword [counterAddr]; jmp
}

const counterAddr = 0x200000

// The power management registers of q35, where the firmware puts them.
const (
	pm1Status  = 0x600
	pm1Enable  = 0x602
	pm1Control = 0x604

	powerButton = 1 << 8
	sleepEnable = 1 << 13
)

func (p *program) powerOff() *program { return p.out16(pm1Control, sleepEnable).halt() }

// powerOffMicroVM writes to the sleep register of the generic event device.
func (p *program) powerOffMicroVM() *program {
	return p.bytes(0xc6, 0x05, 0x00, 0x02, 0xa0, 0xfe, 0x34).halt() // mov byte [0xfea00200], SLP_EN|S5
}

func (p *program) waitForPowerButton() *program {
	p.out16(pm1Enable, powerButton).print("ready\n").port(pm1Status)
	if p.wide {
		return p.bytes(0x66, 0xed, 0xf6, 0xc4, powerButton>>8, 0x74, 0xf9) // 1: in ax,dx; test ah,1; jz 1b
	}
	return p.bytes(0xed, 0xf6, 0xc4, powerButton>>8, 0x74, 0xfa)
}

// reset is the reset register of the chipset.
func (p *program) reset() *program {
	return p.port(0xcf9).bytes(0xb0, 0x06, 0xee).halt() // mov al, 6; out dx, al
}

// tripleFault has an exception without a table of handlers.
func (p *program) tripleFault() *program {
	at := sectorBase
	if p.wide {
		at = kernelBase + kernelOffset
	}
	// lidt [zeroes]; ud2; zeroes: .skip 6
	lidt := []byte{0x0f, 0x01, 0x1e}
	address := make([]byte, 2, 4)
	if p.wide {
		lidt[2] = 0x1d
		address = address[:4]
	}
	zeroes := at + len(p.code) + len(lidt) + len(address) + 2
	for i := range address {
		address[i] = byte(zeroes >> (8 * i))
	}
	return p.bytes(lidt...).bytes(address...).bytes(0x0f, 0x0b).bytes(make([]byte, 6)...)
}

// panicked tells the device that the kernel panicked (QEMU docs/specs/pvpanic).
func (p *program) panicked() *program {
	return p.port(0x505).bytes(0xb0, 0x01, 0xee).halt()
}

// writeSector copies the boot sector to another sector of the disk from which
// it was booted, through the firmware (int 13h, function 3).
func (p *program) writeSector(n byte) *program {
	p.bytes(0x31, 0xc0, 0x8e, 0xc0)               // xor ax, ax; mov es, ax
	p.bytes(0xb8, 0x01, 0x03)                     // mov ax, 0x0301: write one sector
	p.bytes(0xb9, n+1, 0x00)                      // mov cx: cylinder 0, sectors count from 1
	p.bytes(0xb6, 0x00)                           // mov dh, 0; the drive is in dl
	p.bytes(0xbb, sectorBase&0xff, sectorBase>>8) // mov bx
	return p.bytes(0xcd, 0x13)                    // int 13h
}

func kernel() *program     { return &program{wide: true} }
func bootSector() *program { return &program{} }

// kernelOffset is the size of the ELF's headers, which come before the code.
const kernelOffset = 0x34 + 2*0x20 + 20

// write writes the program as an uncompressed kernel: an ELF file with the note
// that gives its PVH entry point.
func (p *program) write(t *testing.T) string {
	t.Helper()
	var b bytes.Buffer
	put := func(values ...any) {
		for _, v := range values {
			binary.Write(&b, binary.LittleEndian, v)
		}
	}
	entry := uint32(kernelBase + kernelOffset)
	size := uint32(kernelOffset + len(p.code))
	put([]byte("\x7fELF\x01\x01\x01"), make([]byte, 9))
	put(uint16(2), uint16(3), uint32(1), entry, uint32(0x34), uint32(0), uint32(0)) // EXEC, 386
	put(uint16(0x34), uint16(0x20), uint16(2), uint16(0), uint16(0), uint16(0))
	put(uint32(1), uint32(0), uint32(kernelBase), uint32(kernelBase), size, size, uint32(7), uint32(0x1000)) // LOAD
	put(uint32(4), uint32(0x34+2*0x20), uint32(0), uint32(0), uint32(20), uint32(20), uint32(4), uint32(4))  // NOTE
	put(uint32(4), uint32(4), uint32(18), []byte("Xen\x00"), entry)                                          // XEN_ELFNOTE_PHYS32_ENTRY
	b.Write(p.code)
	return writeFile(t, "kernel", b.Bytes())
}

// writeDisk writes the program as the boot sector of a disk of 1 MiB.
func (p *program) writeDisk(t *testing.T) string {
	t.Helper()
	disk := make([]byte, 1<<20)
	if len(p.code) > 510 {
		t.Fatalf("%d bytes of code in a boot sector", len(p.code))
	}
	copy(disk, p.code)
	disk[510], disk[511] = 0x55, 0xaa
	return writeFile(t, "disk", disk)
}

func writeFile(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
