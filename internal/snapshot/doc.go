// Package snapshot keeps saved machines as files: in a cache, under a key that
// says all that they depend on, or in a directory of the user's. It knows
// nothing of how a machine is saved and restored.
//
// A saved machine is a directory:
//
//	meta.json  what it is, and the checksums of the rest
//	memory     the guest's memory, with holes
//	device     everything else of the machine, in the backend's own format
//	console    what the guest's console has said
//	disk0 …    what the guest has written to its disk, uppermost first
//
// It is written into a scratch directory and appears complete, by a rename.
// Nobody ever writes to it again: memory is mapped privately, disks get an
// overlay.
//
// What is guaranteed of one that was opened: meta.json, device and console are
// compared with their checksums each time. The memory and the disks are large,
// and reading them would take longer than to restore; of them the size and the
// times of the last change, which every write to the file changes, are compared
// each time, and the whole contents when these differ and once after each boot of
// the host. So what somebody wrote is found at once, and what a disk lost is found
// by the first who could have read it.
package snapshot
