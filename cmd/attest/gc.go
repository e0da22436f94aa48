package main

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/attest-vm/attest/internal/boot"
	"github.com/attest-vm/attest/internal/cache"
	"github.com/attest-vm/attest/internal/image"
	"github.com/attest-vm/attest/internal/supervise"
)

func newGC() *cobra.Command {
	return &cobra.Command{
		Use:   "gc",
		Short: "Remove what a killed run left behind",
		Long: "gc ends processes and removes state directories of runs that are no longer\n" +
			"alive, what an interrupted image build left in the cache, images and parts of images\n" +
			"without an end mark, and what the cache has of builds of attest that are no longer\n" +
			"used. A run cleans up after itself even when it is killed; gc is for when its\n" +
			"supervisor was killed too.",
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
			scratch, err := cache.RunRoot()
			if err != nil {
				return err
			}
			disks, err := supervise.Sweep(cmd.Context(), scratch)
			if err != nil {
				return err
			}
			removed = append(removed, disks...)
			leftovers, err := image.Sweep(cmd.Context())
			if err != nil {
				return err
			}
			unused, err := boot.Prune()
			if err != nil {
				return err
			}
			for _, path := range slices.Concat(removed, leftovers, unused) {
				fmt.Fprintln(cmd.OutOrStdout(), "removed", path)
			}
			return nil
		},
	}
}
