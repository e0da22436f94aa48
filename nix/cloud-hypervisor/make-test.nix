# lib.makeTest on cloud-hypervisor.
import ../microvm.nix "cloud-hypervisor"
