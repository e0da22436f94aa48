# The root of a machine on a microVM whose store is a disk of its own: $out/rootfs.ext4,
# empty but for what has to be there when it is mounted.
args: import ./make-rootfs.nix ({ freeSpace = 256; } // args // { withStore = false; })
