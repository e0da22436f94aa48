package operation

import (
	"context"
	"fmt"
	"path/filepath"
)

// checkBelow refuses names of what is written that would lead out of the output
// directory.
func checkBelow(v any) error {
	if name := v.(string); name != "" && !filepath.IsLocal(name) {
		return fmt.Errorf("%q is not below the output directory; want a relative name that has no \"..\" in it", name)
	}
	return nil
}

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
			{Name: "target_dir", Type: String, Default: "", Check: checkBelow, Doc: "a directory below that of the test and the machine; it is made if missing"},
		},
		Doc: "Copies a file or a directory tree from the guest to the host, under its own name.\n\n" +
			"It goes to the directory `TEST/MACHINE` below the output directory (`-o`), so that tests and machines do not overwrite each other. " +
			"Two different sources that go to one name are an error.\n\n" +
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
