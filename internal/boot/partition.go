package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"unicode/utf16"
)

// Partition is an entry of a disk's partition table.
type Partition struct {
	Number int    // as in /dev/vda<Number>
	Start  int64  // bytes
	Size   int64  // bytes
	Type   string // GPT: the type's GUID in lower case; MBR: "0x83"
	Name   string // GPT only
}

// Types of the discoverable partitions specification (uapi-group.org) for a root.
var rootTypes = map[string]bool{
	"4f68bce3-e8cd-4db1-96e7-fbcaf984b709": true, // x86-64
	"b921b045-1df0-41c3-af44-4c6f280d3fae": true, // arm64
	"44479540-f297-41b2-9af7-d131d5f0458a": true, // x86
	"72ec70a6-cf74-40e6-bd49-4bda08e8f224": true, // riscv64
}

const (
	sectorSize    = 512
	maxPartitions = 128 // what every tool writes; a table may claim any number
	maxLogical    = 64  // a chain that is longer is a loop
)

// ReadPartitions reads a GPT or MBR partition table of a disk with sectors of
// 512 bytes. A disk without a table has no partitions, which is not an error.
func ReadPartitions(r io.ReaderAt) ([]Partition, error) {
	mbr := make([]byte, sectorSize)
	if _, err := r.ReadAt(mbr, 0); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("partition table: %w", err)
	}
	if mbr[510] != 0x55 || mbr[511] != 0xaa {
		return nil, nil
	}
	for _, e := range mbrEntries(mbr) {
		if e.kind == 0xee { // the protective entry
			return readGPT(r)
		}
	}
	return readMBR(r, mbr)
}

// mbrEntry is one of the four entries of an MBR or an extended boot record.
type mbrEntry struct {
	kind        byte
	start, size int64 // sectors
}

func mbrEntries(sector []byte) []mbrEntry {
	var entries []mbrEntry
	for i := range 4 {
		e := sector[446+16*i:]
		entries = append(entries, mbrEntry{
			kind:  e[4],
			start: int64(binary.LittleEndian.Uint32(e[8:])),
			size:  int64(binary.LittleEndian.Uint32(e[12:])),
		})
	}
	return entries
}

func isExtended(kind byte) bool { return kind == 0x05 || kind == 0x0f || kind == 0x85 }

func readMBR(r io.ReaderAt, mbr []byte) ([]Partition, error) {
	var parts []Partition
	add := func(number int, base int64, e mbrEntry) {
		parts = append(parts, Partition{
			Number: number,
			Start:  (base + e.start) * sectorSize,
			Size:   e.size * sectorSize,
			Type:   fmt.Sprintf("0x%02x", e.kind),
		})
	}
	extended := int64(0)
	for i, e := range mbrEntries(mbr) {
		switch {
		case e.kind == 0 || e.size == 0:
		case isExtended(e.kind):
			extended = e.start
		default:
			add(i+1, 0, e)
		}
	}
	// Logical partitions are a chain of boot records: the first entry is the
	// partition, relative to its record; the second the next record, relative
	// to the extended partition.
	record := extended
	for number := 5; record != 0 && number < 5+maxLogical; number++ {
		sector := make([]byte, sectorSize)
		if _, err := r.ReadAt(sector, record*sectorSize); err != nil {
			return parts, fmt.Errorf("partition table: extended boot record at sector %d: %w", record, err)
		}
		if sector[510] != 0x55 || sector[511] != 0xaa {
			break
		}
		entries := mbrEntries(sector)
		if e := entries[0]; e.kind != 0 && e.size != 0 {
			add(number, record, e)
		}
		if !isExtended(entries[1].kind) {
			break
		}
		record = extended + entries[1].start
	}
	return parts, nil
}

// readGPT reads the primary table (UEFI specification, 5.3). The checksums are
// the firmware's business: a table that the kernel accepts has good ones.
func readGPT(r io.ReaderAt) ([]Partition, error) {
	header := make([]byte, 92)
	if _, err := r.ReadAt(header, sectorSize); err != nil {
		return nil, fmt.Errorf("partition table: GPT header: %w", err)
	}
	if !bytes.HasPrefix(header, []byte("EFI PART")) {
		return nil, errors.New("partition table: a protective MBR, but no GPT header at sector 1 (sectors of 4096 bytes are not supported)")
	}
	table := int64(binary.LittleEndian.Uint64(header[72:]))
	count := int64(binary.LittleEndian.Uint32(header[80:]))
	size := int64(binary.LittleEndian.Uint32(header[84:]))
	if size < 128 || size > 4096 || table < 2 || table > 1<<40 {
		return nil, fmt.Errorf("partition table: invalid GPT header: entries of %d bytes at sector %d", size, table)
	}
	var parts []Partition
	for i := range min(count, maxPartitions) {
		e := make([]byte, 128)
		if _, err := r.ReadAt(e, table*sectorSize+i*size); err != nil {
			return parts, fmt.Errorf("partition table: GPT entry %d: %w", i+1, err)
		}
		if bytes.Equal(e[:16], make([]byte, 16)) {
			continue
		}
		first := int64(binary.LittleEndian.Uint64(e[32:]))
		last := int64(binary.LittleEndian.Uint64(e[40:]))
		if first < 1 || last < first || last > 1<<50 {
			return parts, fmt.Errorf("partition table: GPT entry %d spans sectors %d to %d", i+1, first, last)
		}
		parts = append(parts, Partition{
			Number: int(i) + 1,
			Start:  first * sectorSize,
			Size:   (last - first + 1) * sectorSize,
			Type:   formatGUID(e[:16]),
			Name:   decodeUTF16(e[56:128]),
		})
	}
	return parts, nil
}

// formatGUID prints a GUID as it is on disk: the first three fields little-endian.
func formatGUID(b []byte) string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint16(b[4:]),
		binary.LittleEndian.Uint16(b[6:]), b[8:10], b[10:16])
}

func decodeUTF16(b []byte) string {
	var units []uint16
	for ; len(b) >= 2; b = b[2:] {
		u := binary.LittleEndian.Uint16(b)
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return string(utf16.Decode(units))
}
