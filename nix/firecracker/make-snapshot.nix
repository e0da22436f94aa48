# The snapshot of a machine on Firecracker, under the name of older set-ups.
import ../make-snapshot.nix
