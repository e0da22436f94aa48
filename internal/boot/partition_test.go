package boot

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"
)

const linuxRoot = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"

// gptDisk is the first MiB of a disk of that size with a GPT, good enough for
// the kernel, which checks its sums. Partition entries are numbered from 1.
func gptDisk(size int64, parts map[int]Partition) []byte {
	const entries, first, entrySize = 128, 2, 128
	disk := make([]byte, 1<<20)
	le := binary.LittleEndian
	disk[446+4] = 0xee // protective MBR
	le.PutUint32(disk[446+8:], 1)
	le.PutUint32(disk[446+12:], uint32(size/sectorSize-1))
	disk[510], disk[511] = 0x55, 0xaa

	table := disk[first*sectorSize:][:entries*entrySize]
	for number, p := range parts {
		e := table[(number-1)*entrySize:]
		copy(e, guidBytes(p.Type))
		e[16] = byte(number) // the partition's own GUID must not be zero
		le.PutUint64(e[32:], uint64(p.Start/sectorSize))
		le.PutUint64(e[40:], uint64((p.Start+p.Size)/sectorSize-1))
		for i, u := range utf16.Encode([]rune(p.Name)) {
			le.PutUint16(e[56+2*i:], u)
		}
	}

	h := disk[sectorSize:]
	copy(h, "EFI PART\x00\x00\x01\x00")
	le.PutUint32(h[12:], 92)
	le.PutUint64(h[24:], 1)                         // this header
	le.PutUint64(h[32:], uint64(size/sectorSize-1)) // the other one
	le.PutUint64(h[40:], 34)
	le.PutUint64(h[48:], uint64(size/sectorSize-34))
	h[56] = 1
	le.PutUint64(h[72:], first)
	le.PutUint32(h[80:], entries)
	le.PutUint32(h[84:], entrySize)
	le.PutUint32(h[88:], crc32.ChecksumIEEE(table))
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
	return disk
}

// guidBytes is the inverse of formatGUID.
func guidBytes(guid string) []byte {
	var raw []byte
	hex := strings.ReplaceAll(guid, "-", "")
	for i := 0; i < len(hex); i += 2 {
		raw = append(raw, unhex(hex[i])<<4|unhex(hex[i+1]))
	}
	for _, field := range [][2]int{{0, 4}, {4, 6}, {6, 8}} {
		f := raw[field[0]:field[1]]
		for i, j := 0, len(f)-1; i < j; i, j = i+1, j-1 {
			f[i], f[j] = f[j], f[i]
		}
	}
	return raw
}

func unhex(c byte) byte { return byte(strings.IndexByte("0123456789abcdef", c)) }

// mbrSector is a boot record with these entries.
func mbrSector(entries ...mbrEntry) []byte {
	s := make([]byte, sectorSize)
	for i, e := range entries {
		b := s[446+16*i:]
		b[4] = e.kind
		binary.LittleEndian.PutUint32(b[8:], uint32(e.start))
		binary.LittleEndian.PutUint32(b[12:], uint32(e.size))
	}
	s[510], s[511] = 0x55, 0xaa
	return s
}

func TestReadPartitionsGPT(t *testing.T) {
	want := []Partition{
		{Number: 1, Start: 1 << 20, Size: 4 << 20, Type: "c12a7328-f81f-11d2-ba4b-00a0c93ec93b", Name: "EFI System"},
		{Number: 3, Start: 8 << 20, Size: 50 << 20, Type: linuxRoot, Name: "rööt"},
	}
	disk := gptDisk(64<<20, map[int]Partition{1: want[0], 3: want[1]})
	got, err := ReadPartitions(bytes.NewReader(disk))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestReadPartitionsMBR(t *testing.T) {
	// One primary, and an extended one with two logical ones in a chain.
	disk := make([]byte, 1<<20)
	copy(disk, mbrSector(mbrEntry{0x83, 64, 100}, mbrEntry{0x05, 200, 1000}))
	copy(disk[200*sectorSize:], mbrSector(mbrEntry{0x82, 2, 10}, mbrEntry{0x05, 50, 100}))
	copy(disk[250*sectorSize:], mbrSector(mbrEntry{0x83, 4, 20}))
	got, err := ReadPartitions(bytes.NewReader(disk))
	if err != nil {
		t.Fatal(err)
	}
	want := []Partition{
		{Number: 1, Start: 64 * sectorSize, Size: 100 * sectorSize, Type: "0x83"},
		{Number: 5, Start: 202 * sectorSize, Size: 10 * sectorSize, Type: "0x82"},
		{Number: 6, Start: 254 * sectorSize, Size: 20 * sectorSize, Type: "0x83"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestReadPartitionsWithoutTable(t *testing.T) {
	for name, disk := range map[string][]byte{
		"empty":     nil,
		"zeroes":    make([]byte, 4096),
		"bootable":  mbrSector(),
		"ext4 only": superblock(1080, "\x53\xef"),
	} {
		if got, err := ReadPartitions(bytes.NewReader(disk)); err != nil || len(got) != 0 {
			t.Errorf("%s: %v, %v; want none", name, got, err)
		}
	}
}

// The chain of logical partitions of a broken disk may lead back to itself.
func TestReadPartitionsLoop(t *testing.T) {
	disk := make([]byte, 1<<16)
	copy(disk, mbrSector(mbrEntry{0x05, 8, 100}))
	copy(disk[8*sectorSize:], mbrSector(mbrEntry{0x83, 1, 1}, mbrEntry{0x05, 0, 100}))
	got, err := ReadPartitions(bytes.NewReader(disk))
	if err != nil || len(got) != maxLogical {
		t.Errorf("%d partitions, %v; want %d", len(got), err, maxLogical)
	}
}

func TestReadPartitionsErrors(t *testing.T) {
	nonsense := gptDisk(64<<20, map[int]Partition{1: {Type: linuxRoot, Start: 1 << 20, Size: 1 << 20}})
	binary.LittleEndian.PutUint32(nonsense[sectorSize+84:], 3)
	backwards := gptDisk(64<<20, map[int]Partition{1: {Type: linuxRoot, Start: 8 << 20, Size: -4 << 20}})
	for name, c := range map[string]struct {
		disk []byte
		want string
	}{
		"protective MBR alone":  {append(mbrSector(mbrEntry{0xee, 1, 1}), make([]byte, 512)...), "no GPT header"},
		"cut off":               {mbrSector(mbrEntry{0xee, 1, 1}), "GPT header"},
		"entries of 3 bytes":    {nonsense, "invalid GPT header"},
		"ends before its start": {backwards, "spans sectors"},
		"chain to nowhere":      {mbrSector(mbrEntry{0x05, 8, 100}), "extended boot record at sector 8"},
	} {
		if _, err := ReadPartitions(bytes.NewReader(c.disk)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", name, err, c.want)
		}
	}
}

func FuzzReadPartitions(f *testing.F) {
	f.Add(gptDisk(64<<20, map[int]Partition{1: {Type: linuxRoot, Start: 1 << 20, Size: 1 << 20, Name: "x"}})[:4096])
	f.Add(mbrSector(mbrEntry{0x83, 1, 1}, mbrEntry{0x05, 0, 1}))
	f.Fuzz(func(t *testing.T, disk []byte) {
		parts, _ := ReadPartitions(bytes.NewReader(disk))
		for _, p := range parts {
			if p.Number < 1 || p.Size <= 0 || p.Start < 0 {
				t.Errorf("impossible partition %+v", p)
			}
		}
		ProbeFilesystem(bytes.NewReader(disk))
	})
}

func TestPartitionDevice(t *testing.T) {
	for disk, want := range map[string]string{"/dev/vda": "/dev/vda3", "/dev/nvme0n1": "/dev/nvme0n1p3"} {
		if got := partitionDevice(disk, 3); got != want {
			t.Errorf("%s: %s, want %s", disk, got, want)
		}
	}
}
