package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/attest-vm/attest"
	"github.com/attest-vm/attest/internal/cache"
	"github.com/attest-vm/attest/internal/snapshot"
)

func newSnapshot() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Build, list and remove the snapshots that machines start from",
		Long: "A machine starts from a snapshot of one that has booted. It is made when there is\n" +
			"none, and kept in a cache, $XDG_CACHE_HOME/attest/snapshot (~/.cache/attest/snapshot),\n" +
			"of at most 10 GiB (" + snapshot.SizeEnv + " sets another limit); those that\n" +
			"were not used for longest go first.",
		Args: knownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newSnapshotBuild(), newSnapshotList(), newSnapshotRemove(), newSnapshotPrune())
	return cmd
}

func snapshotStore() (*snapshot.Store, error) {
	root, err := cache.Root()
	if err != nil {
		return nil, err
	}
	return snapshot.OpenStore(root, nil)
}

func newSnapshotList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the snapshots in the cache with their sizes and last use",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := snapshotStore()
			if err != nil {
				return err
			}
			list, err := store.List()
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tSIZE\tLAST USED\tMACHINE")
			for _, i := range list {
				used := humanize.Time(i.LastUsed)
				if i.InUse {
					used = "in use"
				}
				title := i.Title
				if i.Reason != "" {
					title = "of no use: " + i.Reason
				}
				fmt.Fprintf(w, "%.12s\t%s\t%s\t%s\n", i.ID, bytes(i.Size), used, title)
			}
			return w.Flush()
		},
	}
}

func newSnapshotRemove() *cobra.Command {
	return &cobra.Command{
		Use:   "remove SNAPSHOT...",
		Short: "Remove snapshots, by ID or by what they are of, as list shows them",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, names []string) error {
			store, err := snapshotStore()
			if err != nil {
				return err
			}
			var errs []error
			for _, name := range names {
				errs = append(errs, removeSnapshot(cmd, store, name))
			}
			return errors.Join(errs...)
		},
	}
}

func removeSnapshot(cmd *cobra.Command, store *snapshot.Store, name string) error {
	list, err := store.List()
	if err != nil {
		return err
	}
	found := false
	for _, i := range list {
		if name == "" || i.Title != name && !strings.HasPrefix(i.ID, name) {
			continue
		}
		found = true
		freed, err := store.Remove(i)
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "removed %s (%.12s), %s\n", i.Title, i.ID, bytes(freed))
	}
	if !found {
		return &attest.ConfigError{Subject: "snapshot " + name, Reason: "not found; attest snapshot list shows all snapshots"}
	}
	return nil
}

func newSnapshotPrune() *cobra.Command {
	return newPrune("snapshot", "those that are left have", func(ctx context.Context, olderThan time.Duration, maxSize int64) (removed []string, freed int64, err error) {
		store, err := snapshotStore()
		if err != nil {
			return nil, 0, err
		}
		infos, freed, err := store.Prune(ctx, snapshot.PruneOptions{OlderThan: olderThan, MaxSize: maxSize})
		for _, i := range infos {
			removed = append(removed, fmt.Sprintf("%s (%.12s)", i.Title, i.ID))
		}
		return removed, freed, err
	})
}
