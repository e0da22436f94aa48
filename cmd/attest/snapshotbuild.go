package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"
)

func newSnapshotBuild() *cobra.Command {
	f := &runFlags{timeout: durationFlag(defaultTimeout)}
	cmd := &cobra.Command{
		Use:   "build [flags] FILE -o DIR",
		Short: "Write the state that a test file's setup leaves to files",
		Long: "build runs setup() of a test file and writes the state of its machines to a\n" +
			"directory: memory, devices and disks. attest run --from DIR begins the file's tests\n" +
			"there, and snapshot_path in a machine configuration starts one machine from its\n" +
			"directory below DIR; on this host, or another one of the same kind. The file needs\n" +
			"no tests.",
		Example: "  attest snapshot build cluster_test.star -o cluster\n" +
			"  attest run --from cluster cluster_test.star",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, files []string) error {
			if f.SaveTo == "" {
				return errors.New("no directory given for the state; use -o DIR")
			}
			f.Jobs = 1
			return f.run(cmd, files)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVarP(&f.SaveTo, "output", "o", "", "`directory` for the state; made if missing, and otherwise empty")
	flags.StringVar(&f.Host.Backend, "backend", "auto", "`name` of the backend for machines that name none")
	flags.BoolVar(&f.cold, "cold", false, "boot every machine instead of starting it from a snapshot")
	flags.Var(&f.timeout, "timeout", "`limit` of all, in seconds or as 90s, 10m; 0 for none")
	flags.Var((*varsFlag)(&f.Vars), "var", "give the test file a variable, `NAME=VALUE`, which it asks for by var(NAME); can be given again")
	flags.BoolVar(&f.NoBuild, "no-build", false, "do not run the commands by which the test file builds what it tests")
	flags.StringVar(&f.MachineConfig, "machine-config", os.Getenv("machineConfig"), "JSON `file` with machines (environment: machineConfig)")
	flags.BoolVarP(&f.verbose, "verbose", "v", false, "show every step, console line and command output as it comes")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "show failures and the last line only")
	return cmd
}
