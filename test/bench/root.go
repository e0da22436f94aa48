package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/attest-vm/attest"
)

// rootTimes are those of machines with one kind of root.
type rootTimes struct{ cold, warm, save, fork []time.Duration }

// plain is the root that is measured beside the overlay.
const plain = "ext4"

// rootRows measure machines whose root is a file system on a disk of its own beside
// those with an overlay, the samples of both taken in turn. What is made once, the root
// in the cache and the templates, does not count.
func (b *bench) rootRows(ctx context.Context) ([]Row, error) {
	times := map[string]*rootTimes{"overlay": {}, plain: {}}
	for i := range b.warm + 1 {
		for _, root := range []string{"overlay", plain} {
			b.say("root %s, %d", root, i)
			t := times[root]
			if i == 0 {
				t = &rootTimes{}
			}
			if err := b.rooted(ctx, root, i < b.boots+1, t); err != nil {
				return nil, fmt.Errorf("root %s: %w", root, err)
			}
		}
	}
	overlay, own := times["overlay"], times[plain]
	beside := fmt.Sprintf(", root on an %s of its own, beside an overlay", plain)
	return []Row{
		newRow("cold boot to first command"+beside, overlay.cold, own.cold, Target{}),
		newRow("warm start to first command"+beside, overlay.warm, own.warm, Target{}),
		newRow("save"+beside, overlay.save, own.save, Target{}),
		newRow("fork, to running"+beside, overlay.fork, own.fork, Target{}),
	}, nil
}

// rooted takes one sample of each.
func (b *bench) rooted(ctx context.Context, root string, cold bool, t *rootTimes) error {
	m := attest.MachineConfig{Name: "guest", Image: image, Memory: memory, Root: root}
	if cold {
		m.Boot = attest.BootCold
		if err := b.startRooted(ctx, m, &t.cold, nil); err != nil {
			return err
		}
	}
	m.Boot = attest.BootWarm
	return b.startRooted(ctx, m, &t.warm, t)
}

// startRooted times a start to the first command, and then, unless t is nil, a save and
// a fork.
func (b *bench) startRooted(ctx context.Context, config attest.MachineConfig, into *[]time.Duration, t *rootTimes) (err error) {
	lab, err := b.host.NewLab(ctx, attest.LabConfig{Machines: []attest.MachineConfig{config}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	if err := lab.Prepare(ctx); err != nil {
		return err
	}
	m := lab.Machine(config.Name)
	took, err := repeat(1, func() error {
		_, err := m.Succeed(ctx, "true")
		return err
	})
	*into = append(*into, took...)
	if err != nil || t == nil {
		return err
	}
	// What a test has written is saved with the machine.
	if _, err := m.Succeed(ctx, "head -c 16M /dev/urandom > /root/written; sync"); err != nil {
		return err
	}
	if took, err = repeat(1, func() error { return m.SnapshotCreate(ctx, "here") }); err != nil {
		return err
	}
	t.save = append(t.save, took...)
	var fork *attest.Lab
	took, err = repeat(1, func() (err error) {
		fork, err = lab.Fork(ctx)
		return err
	})
	if err != nil {
		return err
	}
	t.fork = append(t.fork, took...)
	return fork.Close()
}
