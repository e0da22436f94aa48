package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/attest-vm/attest/internal/image"
	"github.com/attest-vm/attest/internal/supervise"
)

func newGC() *cobra.Command {
	return &cobra.Command{
		Use:   "gc",
		Short: "Remove what a killed run left behind",
		Long: "gc ends processes and removes state directories of runs that are no longer\n" +
			"alive, and what an interrupted image build left in the cache. A run cleans up\n" +
			"after itself even when it is killed; gc is for when its supervisor was killed too.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			root, err := supervise.StateRoot()
			if err != nil {
				return err
			}
			removed, err := supervise.Sweep(cmd.Context(), root)
			if err != nil {
				return err
			}
			leftovers, err := image.Sweep(cmd.Context())
			if err != nil {
				return err
			}
			for _, path := range append(removed, leftovers...) {
				fmt.Fprintln(cmd.OutOrStdout(), "removed", path)
			}
			return nil
		},
	}
}
