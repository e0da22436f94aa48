// Package erofs writes uncompressed EROFS images from a stream of files.
//
// File contents go straight to the image as they arrive, so a tar stream of
// any size becomes an image in one pass and without a temporary copy. Names and
// attributes are kept in memory and written after the data, the superblock last:
// an image that was not finished has no magic number and cannot be mounted.
//
// Hard links, device nodes, sparse sizes beyond 4 GiB, nanosecond times and
// extended attributes (security.capability, POSIX ACLs) are kept. Files are not
// compressed: a guest in an emulator would pay for it with its own CPU.
//
// The format is described in Documentation/filesystems/erofs.rst and
// fs/erofs/erofs_fs.h of Linux; every feature used here is in Linux 5.4.
package erofs
