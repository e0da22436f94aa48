package operation

import "context"

var filesTable = []*Operation{
	{
		Name: "copy_from_host", Subject: "Files", Result: None,
		Params: []Param{
			{Name: "source", Type: String, Doc: "a file or a directory of the host; relative to the test file"},
			{Name: "target", Type: String, Doc: "a path in the guest"},
		},
		Doc: "Copies a file or a directory tree into the guest, as `cp -r` does: into the target if that is a directory, otherwise to that name. Missing parent directories are made.\n\n" +
			"See [files.md](files.md) for what a copy keeps: holes, permissions and links, but not owners and times.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.CopyFromHost(ctx, a.String("source"), a.String("target"))
		},
	},
	{
		Name: "copy_from_machine", Aliases: []string{"copy_from_vm"}, Subject: "Files", Result: None,
		Params: []Param{
			{Name: "source", Type: String, Doc: "a file or a directory of the guest"},
			{Name: "target_dir", Type: String, Default: "", Doc: "a directory below the output directory (`-o`); it is made if missing"},
		},
		Doc: "Copies a file or a directory tree from the guest to the host, under its own name.\n\n" +
			"Nothing is written outside of that copy, whatever the guest sends. See [files.md](files.md).",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.CopyFromMachine(ctx, a.String("source"), a.String("target_dir"))
		},
	},
	{
		Name: "copy_from_host_via_shell", Subject: "Files", Result: None,
		Params: []Param{
			{Name: "source", Type: String, Doc: "a file of the host; relative to the test file"},
			{Name: "target", Type: String, Doc: "the name of the file in the guest"},
		},
		Doc: "Copies one file of any size into the guest, through a command of its shell. `copy_from_host` is faster and takes trees.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return nil, t.machine.CopyFromHostViaShell(ctx, a.String("source"), a.String("target"))
		},
	},
}
