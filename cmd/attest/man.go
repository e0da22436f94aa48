package main

import (
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

func newMan() *cobra.Command {
	return &cobra.Command{
		Use:   "man DIRECTORY",
		Short: "Write the man pages",
		Long: "man writes one page in section 1 for each command into DIRECTORY, which is made if\n" +
			"missing. Packages of attest install them.",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true
			root.InitDefaultCompletionCmd()
			// The same source makes the same pages.
			return doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "attest", Manual: "attest", Date: &time.Time{}}, args[0])
		},
	}
}
