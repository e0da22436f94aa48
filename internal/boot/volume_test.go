package boot

import (
	"bytes"
	"fmt"
	"testing"
)

func TestReadVolumes(t *testing.T) {
	const mib = 1 << 20
	disk := make([]byte, 8*mib)
	copy(disk, gptDisk(8*mib, map[int]Partition{
		1: {Start: 1 * mib, Size: mib, Type: typeESP}, 2: {Start: 2 * mib, Size: mib, Type: typeXBOOTLDR}, 3: {Start: 3 * mib, Size: mib, Type: linuxRoot},
		4: {Start: 4 * mib, Size: mib, Type: linuxRoot}, 5: {Start: 5 * mib, Size: mib, Type: linuxRoot}, 6: {Start: 6 * mib, Size: mib, Type: linuxRoot},
	}))
	copy(disk[1*mib:], superblock(82, "FAT32   "))
	copy(disk[2*mib:], superblock(1080, "\x53\xef"))
	copy(disk[3*mib:], superblock(1080, "\x53\xef"))
	copy(disk[3*mib+1024+0x88:], "/boot")
	copy(disk[4*mib:], superblock(1080, "\x53\xef"))
	copy(disk[4*mib+1024+0x88:], "/bootable")
	copy(disk[5*mib:], superblock(0, "LUKS\xba\xbe\x00\x02"))
	volumes, err := ReadVolumes(bytes.NewReader(disk), int64(len(disk)))
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, v := range volumes {
		got += fmt.Sprintf("%v %v\n", v, v.CanBeRoot())
	}
	const want = "partition 1 vfat false\npartition 2 ext4 false\npartition 3 ext4 false\npartition 4 ext4 true\npartition 5 crypto_LUKS false\npartition 6 unknown false\n"
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	whole := superblock(0, "LUKS\xba\xbe\x00\x02")
	if volumes, err := ReadVolumes(bytes.NewReader(whole), int64(len(whole))); err != nil || len(volumes) != 1 || volumes[0].String() != "the disk crypto_LUKS" {
		t.Errorf("%v, %v", volumes, err)
	}
}

// Whatever is on a disk, it is read without a panic, and to an end.
func FuzzReadVolumes(f *testing.F) {
	f.Add(gptDisk(1<<20, map[int]Partition{1: {Start: 1 << 19, Size: 1 << 18, Type: linuxRoot}}))
	f.Add(superblock(0, "LUKS\xba\xbe"))
	f.Add(superblock(1024+0x88, "/boot"))
	f.Fuzz(func(t *testing.T, disk []byte) {
		volumes, err := ReadVolumes(bytes.NewReader(disk), int64(len(disk)))
		if err == nil && (len(volumes) < 1 || len(volumes) > maxPartitions) {
			t.Errorf("%d volumes", len(volumes))
		}
	})
}
