// Package boot is the way of a guest from the kernel's first user process to
// its own init.
//
// On the host it makes an initramfs: attest's own static binary as /init, the
// kernel modules that a disk, a console and a network need, and nothing else
// (Initramfs), and the kernel arguments that tell /init what it will find
// (Guest.Cmdline).
//
// In the guest, Init is what runs as PID 1. It
//
//  1. mounts /proc, /sys, /dev, /run and loads the modules;
//  2. waits for the disks, which it knows by their serials (SerialLayer, …),
//     and mounts the root: read-only layers below a writable overlay, or a disk
//     that was partitioned elsewhere;
//  3. makes that root its own, and starts the agent in it: /proc/self/exe again,
//     with argv[0] "@attest-agent". The "@" keeps systemd-shutdown from killing it
//     (systemd.io/ROOT_STORAGE_DAEMONS), so the host hears a guest to its end;
//  4. waits until the agent says on descriptor 3 that the host has given the
//     guest its name and addresses, so that no service starts with another identity;
//  5. executes the guest's init, or stays as a small init where there is none.
//
// All that /init prints begins with "attest-init: ". When it cannot go on it
// prints one line that begins with FatalPrefix and powers the guest off, so the
// host sees a failed boot at once instead of a timeout. What it did and how
// long it took is in the kernel's log (dmesg).
//
// What the guest synced is on the writable disk, which is never formatted
// here: after a reset or a loss of power the same overlay is mounted again.
package boot
