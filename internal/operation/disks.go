package operation

import (
	"context"
	"fmt"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/vmm"
)

var serialParam = Param{Name: "serial", Type: String, Doc: "the serial of the disk"}

func checkDiskError(v any) error {
	return vmm.DiskFault{Read: v.(string)}.Check()
}

func checkRequests(v any) error {
	if n := v.(int); n < 1 {
		return fmt.Errorf("%d requests a second; want at least one", n)
	}
	return nil
}

var disksTable = []*Operation{
	{
		Name: "plug", Subject: "Disks", Result: String, Needs: vmm.CanPlug,
		Params: []Param{{Name: "disk", Type: Disk, Doc: "a `disk(…)`; or the serial of one that was pulled out, which comes back with all that is on it"}},
		Doc: "Puts a disk into the machine while it runs, and returns the disk's serial.\n\n" +
			"The guest finds the disk a moment later, as `/dev/disk/by-id/virtio-SERIAL` on the bus virtio. Four disks fit beside those that the machine is declared with. The disk of a machine that is off is there at its next start.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			serial, err := t.machine.Plug(ctx, get[attest.Disk](a, "disk"))
			if err != nil {
				return nil, err
			}
			return serial, nil
		},
	},
	{
		Name: "unplug", Subject: "Disks", Result: None, Needs: vmm.CanPlug,
		Params: []Param{serialParam, {Name: "timeout", Type: Duration, Default: Absent, Doc: "the limit of the wait; 2 minutes unless given"}},
		Doc: "Pulls a disk out of the machine, and waits until the guest has let go of it.\n\n" +
			"A file system that is mounted loses its disk. What is on the disk is kept for `plug`.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.Unplug(ctx, a.String("serial"), a.limit())
		},
	},
	{
		Name: "break_disk", Subject: "Disks", Result: None, Needs: vmm.CanPlug,
		Params: []Param{serialParam,
			{Name: "read", Type: String, Default: Absent, Named: true, Check: checkDiskError, Doc: "the error of all reads: `EIO`, `ENOSPC` or `ETIMEDOUT`"},
			{Name: "write", Type: String, Default: Absent, Named: true, Check: checkDiskError, Doc: "the error of all writes; `ENOSPC` is a disk that is full"},
			{Name: "rate", Type: Size, Default: Absent, Named: true, Doc: "how much is read and written in a second, such as `\"1M\"`"},
			{Name: "requests", Type: Int, Default: Absent, Named: true, Check: checkRequests, Doc: "how many requests are done in a second"},
			{Name: "during", Type: Function, Default: Absent, Named: true, Doc: "the disk is healed when this function has returned"},
		},
		Doc: "Makes a disk fail, or makes it slow, in place of what was wrong with it before.\n\n" +
			"It lasts over reboots and restarts, and in forks, until `heal_disk`. It is for the disks of `disks`, and those that were plugged in.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			f := attest.DiskFault{BytesPerSecond: get[int64](a, "rate"), RequestsPerSecond: int64(a.Int("requests")), Read: a.String("read"), Write: a.String("write")}
			var opts []attest.DiskFaultOption
			if fn := a.Func("during"); fn != nil {
				opts = append(opts, attest.DuringDiskFault(func(ctx context.Context) error {
					_, err := fn(ctx)
					return err
				}))
			}
			return nil, t.machine.BreakDisk(ctx, a.String("serial"), f, opts...)
		},
	},
	{
		Name: "heal_disk", Subject: "Disks", Result: None, Needs: vmm.CanPlug,
		Params: []Param{serialParam},
		Doc:    "Ends what is wrong with a disk.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.HealDisk(ctx, a.String("serial"))
		},
	},
}
