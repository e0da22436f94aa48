// Package image makes guest images: a source in, a content-addressed image out.
//
// A [Spec] says what is wanted as plain data; [Store.Build] returns an [Image]:
// read-only file systems that are stacked with overlayfs, a kernel, and nothing
// that is copied per machine. What a machine writes goes to a disk of its own
// that [Store.OverlayDisk] or [CreateOverlay] makes in about a millisecond.
//
// # The cache
//
// Everything lives in one directory, below $XDG_CACHE_HOME/attest by default:
//
//	base/KEY/      base.erofs; root.tar.zst, the same tree with apt's lists, to build on; index.json.zst
//	layer/KEY/     layer.erofs: what packages, files and run lines changed in a base
//	rootfs/KEY/    rootfs.erofs: a directory or tar that somebody else made
//	kernel/KEY/    vmlinux, bzImage, modules.erofs
//	image/KEY/     which of those an image is made of
//	template/KEY/  the empty file system that every machine's writable disk starts from
//	tmp/           builds under way, each locked by its process
//	lock/          one file per object that is being built
//
// KEY is a digest of all that decides the contents. An object is written below
// tmp/, synced, and renamed into its place as a whole. Its file complete lists the
// others and is written last; an object without it is made again. One process builds an object, others wait for it. Who uses an
// object holds a shared flock on its directory: removal needs the exclusive one.
// Locks end with their process, however it ends. What a killed build left is removed
// by its supervisor, or by the next build if that was killed, too.
package image
