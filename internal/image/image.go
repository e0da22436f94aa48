package image

import (
	"fmt"
	"sync"
)

// Image is a built image. Build returns it acquired once: it cannot be removed
// from the cache until Release, or until this process ends.
type Image struct {
	ID    string // hexadecimal; changes with every bit of the layers and the kernel
	Title string // Spec.String
	Spec  Spec   // with absolute paths
	Dir   string // the image's directory in the cache

	Layers []Layer   // lowest first, all read-only and shared; none for a Disk
	Disk   *BaseDisk // a whole disk instead of layers and a kernel
	Kernel *Kernel   // nil for a Disk without one of its own
	Initrd string    // the path of one that is the user's; empty: attest's is to be used

	mu    sync.Mutex
	users int
	held  []*lease // the shared locks while users > 0
}

// Layer is a read-only file system. The guest stacks layers with overlayfs: in
// an upper one a character device 0:0 deletes what is below.
type Layer struct {
	ID     string `json:"id"` // digest of the contents
	Path   string `json:"path"`
	Format string `json:"format"` // "erofs", "squashfs" or "ext4"
	Size   int64  `json:"size"`   // bytes
}

// BaseDisk is a whole-disk image to put an overlay on.
type BaseDisk struct {
	Path   string `json:"path"`
	Format string `json:"format"` // "raw" or "qcow2"
	Size   int64  `json:"size"`   // of the disk as the guest sees it, bytes
}

// Kernel is a kernel with its modules.
type Kernel struct {
	ID      string `json:"id"`      // digest of the contents
	Release string `json:"release"` // uname -r: "6.1.0-37-cloud-amd64"
	// Path is an uncompressed ELF: PVH boot needs it and saves the guest the
	// decompression, seconds in an emulator.
	Path    string `json:"path"`
	BzImage string `json:"bzimage,omitempty"` // empty if only a vmlinux was given
	PVH     bool   `json:"pvh"`               // Path has the PVH entry point; otherwise boot BzImage
	// Modules is a file system whose root is the contents of
	// /lib/modules/Release. Its Path is empty if the kernel came without:
	// drivers are built in, or are in the root.
	Modules Layer `json:"modules,omitzero"`
}

// Acquire adds a user: the image stays in the cache until it has called Release.
func (i *Image) Acquire() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.users == 0 {
		return fmt.Errorf("image %s: already released", i.Title)
	}
	i.users++
	return nil
}

// Release takes one user away. With the last one the cache is free to remove the image.
func (i *Image) Release() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.users--; i.users > 0 {
		return
	}
	for _, l := range i.held {
		l.release()
	}
	i.held = nil
}

// holdToo keeps another object in the cache as long as the image. It reports whether
// the image has users; without any the object is let go.
func (i *Image) holdToo(l *lease) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.users == 0 {
		l.release()
		return false
	}
	i.held = append(i.held, l)
	return true
}
