package operation

import (
	"context"

	"github.com/attest-vm/attest/internal/vmm"
)

var (
	checkpointName = Param{Name: "name", Type: String, Doc: "the name of the state"}

	snapshotsTable = []*Operation{
		{
			Name: "snapshot_create", Subject: "Snapshots", Result: None, Needs: vmm.CanSave,
			Params: []Param{checkpointName},
			Doc: "Keeps the state of this machine: memory, devices and disk. A second state of the same name replaces the first.\n\n" +
				"The other machines keep running; `checkpoint` is for all machines.",
			call: func(ctx context.Context, t target, a Args) (any, error) {
				return nil, t.machine.SnapshotCreate(ctx, a.String("name"))
			},
		},
		{
			Name: "snapshot_restore", Subject: "Snapshots", Result: None, Needs: vmm.CanSave,
			Params: []Param{checkpointName},
			Doc: "Restores the state that `snapshot_create` kept. Later changes of the guest are gone, on its disk too. Its clock is set to the host's.\n\n" +
				"Connections to the other machines may not survive, because those are not restored.",
			call: func(ctx context.Context, t target, a Args) (any, error) {
				return nil, t.machine.SnapshotRestore(ctx, a.String("name"))
			},
		},
		{
			Name: "checkpoint", On: Lab, Subject: "Snapshots", Result: None,
			Params: []Param{checkpointName},
			Doc:    "Keeps the state of all machines at one moment. A second state of the same name replaces the first.",
			call: func(ctx context.Context, t target, a Args) (any, error) {
				return nil, t.lab.Checkpoint(ctx, a.String("name"))
			},
		},
		{
			Name: "restore", On: Lab, Subject: "Snapshots", Result: None,
			Params: []Param{checkpointName},
			Doc:    "Restores the state that `checkpoint` kept, of all machines, whether they run or not. Connections between them go on.",
			call: func(ctx context.Context, t target, a Args) (any, error) {
				return nil, t.lab.Restore(ctx, a.String("name"))
			},
		},
	}
)
