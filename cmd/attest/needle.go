package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/attest-vm/attest/internal/screen"
	"github.com/attest-vm/attest/internal/screen/editor"
	"github.com/attest-vm/attest/internal/screen/needle"
)

func newNeedle() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "needle",
		Short: "Make and change needles: parts of pictures that tests look for",
		Long: "A needle is a picture (PNG) and a file that says which areas of it count (JSON), in\n" +
			"openQA's format. These commands show one in a browser, at an address on this host that\n" +
			"they print. Areas are drawn with the mouse. The command ends when the needle is saved,\n" +
			"or with Ctrl-C.",
		Args: knownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newNeedleNew(), newNeedleEdit())
	return cmd
}

func newNeedleNew() *cobra.Command {
	return &cobra.Command{
		Use:     "new PICTURE NEEDLE",
		Short:   "Make a needle of a picture, such as a screenshot of a test",
		Example: "  attest needle new out/login_test-test_login/m/desktop.png needles/desktop",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			picture, err := screen.ReadFile(args[0])
			if err != nil {
				return err
			}
			n := needle.New(args[1], picture)
			for _, path := range n.Files() {
				if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
					return fmt.Errorf("%s is there already; attest needle edit changes a needle", path)
				}
			}
			return editNeedle(cmd, n)
		},
	}
}

func newNeedleEdit() *cobra.Command {
	return &cobra.Command{
		Use:     "edit NEEDLE",
		Short:   "Change the areas and tags of a needle",
		Example: "  attest needle edit needles/desktop",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := needle.Load(args[0])
			if err != nil {
				return err
			}
			return editNeedle(cmd, n)
		},
	}
}

// editNeedle shows a needle in a browser until it is saved.
func editNeedle(cmd *cobra.Command, n *needle.Needle) error {
	e, err := editor.Open(n)
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "Open %s in a browser. Ctrl-C ends this without saving.\n", e.URL())
	if err := e.Run(cmd.Context()); err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s: saved\n", n.Path)
	return nil
}
