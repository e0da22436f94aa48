package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/dustin/go-humanize/english"
	"github.com/spf13/cobra"
)

// newPrune is the command that removes what a cache has too much of. What is an image or a
// snapshot, has says of whom the size is, and prune returns what it has removed.
func newPrune(what, has string, prune func(ctx context.Context, olderThan time.Duration, maxSize int64) (removed []string, freed int64, err error)) *cobra.Command {
	var olderThan time.Duration
	var maxSize byteSize
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove " + what + "s that nobody uses, least recently used first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			removed, freed, err := prune(cmd.Context(), olderThan, int64(maxSize))
			if err != nil && len(removed) == 0 {
				return err
			}
			for _, r := range removed {
				fmt.Fprintln(cmd.OutOrStdout(), "removed "+r)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s, %s freed\n", english.Plural(len(removed), what, ""), bytes(freed))
			return err
		},
	}
	cmd.Flags().DurationVar(&olderThan, "older-than", 0, "only "+what+"s that were not used for this long, such as 240h")
	cmd.Flags().Var(&maxSize, "max-size", "only until "+has+" at most this size, such as 10GiB")
	return cmd
}

// bytes is a size for people.
func bytes(n int64) string { return humanize.IBytes(uint64(n)) }

// A byteSize is the value of a flag, in bytes.
type byteSize int64

func (b *byteSize) String() string { return "" } // none is given by default
func (b *byteSize) Type() string   { return "size" }

func (b *byteSize) Set(text string) error {
	n, err := humanize.ParseBytes(text)
	if err != nil || n > math.MaxInt64 {
		return errors.New("want a size such as 500MB or 10GiB")
	}
	*b = byteSize(n)
	return nil
}
