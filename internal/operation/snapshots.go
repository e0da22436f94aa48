package operation

import "context"

var (
	checkpointName = Param{Name: "name", Type: String, Doc: "what the state is called"}

	snapshotsTable = []*Operation{
		{
			Name: "snapshot_create", Subject: "Snapshots", Result: None,
			Params: []Param{checkpointName},
			Doc: "Keeps the state of this machine: memory, devices and disk. A second one of the same name replaces the first.\n\n" +
				"The other machines do not stand still meanwhile; `checkpoint` is for all of them.",
			call: func(ctx context.Context, t target, a Args) (any, error) {
				return nil, t.machine.SnapshotCreate(ctx, a.String("name"))
			},
		},
		{
			Name: "snapshot_restore", Subject: "Snapshots", Result: None,
			Params: []Param{checkpointName},
			Doc: "Takes this machine back to where `snapshot_create` was. What its guest has done since is gone, on its disk too; its clock is set to the host's.\n\n" +
				"Connections to other machines, which are not taken back, may not survive.",
			call: func(ctx context.Context, t target, a Args) (any, error) {
				return nil, t.machine.SnapshotRestore(ctx, a.String("name"))
			},
		},
		{
			Name: "checkpoint", On: Lab, Subject: "Snapshots", Result: None,
			Params: []Param{checkpointName},
			Doc:    "Keeps the state of all machines, of the same moment. A second one of the same name replaces the first.",
			call: func(ctx context.Context, t target, a Args) (any, error) {
				return nil, t.lab.Checkpoint(ctx, a.String("name"))
			},
		},
		{
			Name: "restore", On: Lab, Subject: "Snapshots", Result: None,
			Params: []Param{checkpointName},
			Doc:    "Takes all machines back to where `checkpoint` was, also those that were off or have been turned off since. Connections between them go on.",
			call: func(ctx context.Context, t target, a Args) (any, error) {
				return nil, t.lab.Restore(ctx, a.String("name"))
			},
		},
	}
)
