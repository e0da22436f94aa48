# lib.makeTest on cloud-hypervisor, with the argument names of older tests.
{ pkgs, attest ? pkgs.attest, memSize ? 256, vcpuCount ? 1, enableNetwork ? false, ... }@args:
import ../test.nix { inherit pkgs attest; } (
  {
    backend = "cloud-hypervisor";
    memorySize = memSize;
    vcpus = vcpuCount;
    inherit enableNetwork;
  }
  // removeAttrs args [
    "pkgs"
    "attest"
    "memSize"
    "vcpuCount"
  ]
)
