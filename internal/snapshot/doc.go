// Package snapshot keeps saved machines as files: in a cache, under a key that
// contains everything that they depend on, or in a directory of the user's. How a
// machine is saved and restored is not its business.
//
// A saved machine is a directory:
//
//	meta.json  its description, and the checksums of the other files
//	memory     the guest's memory, with holes
//	device     everything else of the machine, in the backend's own format
//	console    the output of the guest's console
//	disk0 …    the writes of the guest to its disk, uppermost first
//
// It is written into a scratch directory and appears complete, by a rename.
// It is never written to again: memory is mapped privately, disks get an
// overlay.
//
// Open compares meta.json, device and console with their checksums each time. The
// memory and the disks are large, and to read them takes longer than to restore
// the machine. Open compares their size and the time of their last change each
// time, and their contents when these differ and once after each boot of
// the host. So a write to a file is found at once, and data that a disk lost is
// found when it is first read after a boot of the host.
package snapshot
