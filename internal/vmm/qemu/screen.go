package qemu

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
)

// The memory of the display adapter is the one small memory that guests do write
// to. For a machine that was restored it is read through the adapter's window,
// and appended to the records of memory that come in front of the devices: where
// a page has two, the later one counts.

// screenBlock ends the name of that memory in a migration stream.
const screenBlock = "/vga.vram"

// Records of memory (QEMU migration/ram.c): 64 bits with the page's offset and
// flags below it, the memory's name unless it is that of the record before, and
// the page, or the byte that fills it.
const (
	pageSize     = 4096
	recordFill   = 0x02
	recordPage   = 0x08
	recordEnd    = 0x10
	recordSame   = 0x20 // the same memory as before
	sectionClose = 0x7e // ends a section, with its number
)

// renewScreen is prefix with the display's memory as it is now.
func (m *machine) renewScreen(ctx context.Context, prefix []byte) ([]byte, error) {
	name, err := blockName(prefix, screenBlock)
	if err != nil || name == nil {
		return prefix, err
	}
	memory, err := m.screenMemory(ctx)
	if err != nil || memory == nil {
		return prefix, err
	}
	return appendPages(prefix, name, memory)
}

// blockName finds the name of a memory in the records: it comes after its length.
func blockName(prefix []byte, suffix string) ([]byte, error) {
	end := bytes.Index(prefix, []byte(suffix))
	if end < 0 {
		return nil, nil
	}
	end += len(suffix)
	for start := end - len(suffix); start > 0 && end-start < 256; start-- {
		if int(prefix[start-1]) == end-start {
			return prefix[start:end], nil
		}
	}
	return nil, fmt.Errorf("QEMU's memory %q has no name in the saved state", suffix)
}

// screenMemory reads the memory of the display adapter; nil if the guest has
// closed the window to it.
func (m *machine) screenMemory(ctx context.Context) ([]byte, error) {
	const display = 0x300 // class code of a VGA controller
	var buses []struct {
		Devices []struct {
			Class struct {
				Class int `json:"class"`
			} `json:"class_info"`
			Regions []struct {
				BAR     int   `json:"bar"`
				Address int64 `json:"address"`
				Size    int64 `json:"size"`
			} `json:"regions"`
		} `json:"devices"`
	}
	if err := m.monitor.Do(ctx, "query-pci", nil, &buses); err != nil {
		return nil, err
	}
	for _, b := range buses {
		for _, d := range b.Devices {
			for _, r := range d.Regions {
				if d.Class.Class != display || r.BAR != 0 || r.Address <= 0 {
					continue
				}
				err := m.monitor.Do(ctx, "pmemsave", map[string]any{"val": r.Address, "size": r.Size, "filename": m.saved.devicesPath()}, nil)
				if err != nil {
					return nil, err
				}
				memory, err := m.takeState()
				if err == nil && int64(len(memory)) != r.Size {
					err = fmt.Errorf("QEMU wrote %d bytes of a display's memory of %d", len(memory), r.Size)
				}
				return memory, err
			}
		}
	}
	return nil, nil
}

// appendPages adds records to the last section of prefix.
func appendPages(prefix, name, memory []byte) ([]byte, error) {
	const tail = 8 + 1 + 4 // the end of the records, and of their section
	body := len(prefix) - tail
	if body < 0 || binary.BigEndian.Uint64(prefix[body:]) != recordEnd || prefix[body+8] != sectionClose {
		return nil, errors.New("QEMU's state does not end with records of memory where the devices begin")
	}
	out := bytes.Clone(prefix[:body])
	for at := 0; at+pageSize <= len(memory); at += pageSize {
		page := memory[at : at+pageSize]
		flags := uint64(recordPage)
		if bytes.Equal(page, zeroPage[:]) {
			flags, page = recordFill, zeroPage[:1]
		}
		if at > 0 {
			flags |= recordSame
		}
		out = binary.BigEndian.AppendUint64(out, uint64(at)|flags)
		if at == 0 {
			out = append(append(out, byte(len(name))), name...)
		}
		out = append(out, page...)
	}
	return append(out, prefix[body:]...), nil
}

var zeroPage [pageSize]byte
