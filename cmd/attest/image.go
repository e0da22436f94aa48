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
	"github.com/attest-vm/attest/internal/access"
	"github.com/attest-vm/attest/internal/event"
	"github.com/attest-vm/attest/internal/image"
	"github.com/attest-vm/attest/internal/report"
	"github.com/attest-vm/attest/internal/script"
	"github.com/attest-vm/attest/internal/supervise"
)

func newImage() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Build, list and remove guest images",
		Long: "Images are built when a test first needs them and kept in a cache,\n" +
			"$XDG_CACHE_HOME/attest (~/.cache/attest). These commands are for building them\n" +
			"ahead and for getting the space back.",
		Args: knownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newImageBuild(), newImageList(), newImageRemove(), newImagePrune())
	return cmd
}

func newImageBuild() *cobra.Command {
	var debian image.Debian
	var options script.Options
	cmd := &cobra.Command{
		Use:   "build [FILE.star]...",
		Short: "Build images ahead: those of test files, or a Debian image",
		Example: "  attest image build web_test.star\n" +
			"  attest image build --suite bookworm --packages nginx,curl",
		RunE: func(cmd *cobra.Command, files []string) error {
			sources, err := sourcesOf(cmd.Context(), files, options)
			if err != nil {
				return err
			}
			if len(files) == 0 {
				sources = []image.Source{debian}
			}
			return buildImages(cmd, sources)
		},
	}
	f := cmd.Flags()
	f.Var((*varsFlag)(&options.Vars), "var", "give the test files a variable, `NAME=VALUE`, which they ask for by var(NAME); can be given again")
	f.StringVar(&debian.Suite, "suite", "", "Debian release (default "+image.DefaultSuite+")")
	f.StringSliceVar(&debian.Packages, "packages", nil, "packages to install, separated by commas")
	f.StringSliceVar(&debian.Run, "run", nil, "shell line to run in the image at the end (repeatable)")
	f.StringVar(&debian.Kernel, "kernel", "", "debian:PACKAGE, or the path of a kernel")
	return cmd
}

// sourcesOf are the images of all machines of test files.
func sourcesOf(ctx context.Context, files []string, options script.Options) ([]image.Source, error) {
	var sources []image.Source
	for _, path := range files {
		file, err := script.Load(ctx, path, options)
		if err != nil {
			return nil, err
		}
		for _, m := range file.Machines() {
			if m.Image != nil { // not of one with a start command
				sources = append(sources, access.Spec(m.Image))
			}
		}
	}
	return sources, nil
}

func buildImages(cmd *cobra.Command, sources []image.Source) error {
	ctx := cmd.Context()
	sup, err := supervise.Start(ctx, supervise.Options{})
	if err != nil {
		return err
	}
	defer sup.Close()
	store, err := image.OpenStore(sup)
	if err != nil {
		return err
	}
	bus := &event.Bus{}
	terminal := report.NewTerminal(report.StandardTerminal(report.Normal))
	bus.Subscribe(terminal.Record)
	defer terminal.Close()
	for _, source := range sources {
		img, err := store.Build(event.WithBus(ctx, bus), source)
		if err != nil {
			return err
		}
		defer img.Release()
		fmt.Fprintf(cmd.OutOrStdout(), "%.12s  %s\n", img.ID, img.Title)
	}
	return nil
}

func newImageList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the images in the cache with their sizes and last use",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := image.OpenStore(nil)
			if err != nil {
				return err
			}
			entries, err := store.List(cmd.Context())
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tSIZE\tOWN\tLAST USED\tIMAGE")
			for _, e := range entries {
				used := humanize.Time(e.LastUsed)
				if e.InUse {
					used = "in use"
				}
				title := e.Title
				if e.Reason != "" {
					title += ", of no use: " + e.Reason
				}
				fmt.Fprintf(w, "%.12s\t%s\t%s\t%s\t%s\n", e.ID, bytes(e.Size), bytes(e.Own), used, title)
			}
			return w.Flush()
		},
	}
}

func newImageRemove() *cobra.Command {
	return &cobra.Command{
		Use:   "remove IMAGE...",
		Short: "Remove images, by ID or by title, as list shows them",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, names []string) error {
			store, err := image.OpenStore(nil)
			if err != nil {
				return err
			}
			var errs []error
			for _, name := range names {
				errs = append(errs, removeImage(cmd, store, name))
			}
			return errors.Join(errs...)
		},
	}
}

func removeImage(cmd *cobra.Command, store *image.Store, name string) error {
	found, err := store.Find(cmd.Context(), name)
	if err != nil {
		return err
	}
	switch len(found) {
	case 0:
		return &attest.ConfigError{Subject: "image " + name, Reason: "not found; attest image list shows all images"}
	case 1:
		freed, err := store.Remove(cmd.Context(), found[0])
		if err == nil {
			fmt.Fprintf(cmd.OutOrStdout(), "removed %s (%.12s), %s\n", found[0].Title, found[0].ID, bytes(freed))
		}
		return err
	}
	var ids []string
	for _, e := range found {
		ids = append(ids, fmt.Sprintf("%.12s", e.ID))
	}
	return &attest.ConfigError{Subject: "image " + name, Reason: "ambiguous; choose one of " + strings.Join(ids, ", ")}
}

func newImagePrune() *cobra.Command {
	return newPrune("image", "the cache has", func(ctx context.Context, olderThan time.Duration, maxSize int64) (removed []string, freed int64, err error) {
		store, err := image.OpenStore(nil)
		if err != nil {
			return nil, 0, err
		}
		entries, freed, err := store.Prune(ctx, image.PruneOptions{OlderThan: olderThan, MaxSize: maxSize})
		for _, e := range entries {
			removed = append(removed, fmt.Sprintf("%s (%.12s)", e.Title, e.ID))
		}
		return removed, freed, err
	})
}
