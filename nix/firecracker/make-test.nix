# lib.makeTest on Firecracker.
import ../microvm.nix "firecracker"
