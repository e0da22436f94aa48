# The snapshot of a machine on QEMU, under the name of older set-ups.
import ../make-snapshot.nix
