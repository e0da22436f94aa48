# makeTest on a microVM, with the argument names of older tests.
backend:
{
  pkgs,
  attest ? pkgs.attest,
  memSize ? 256,
  vcpuCount ? 1,
  enableNetwork ? false,
  ...
}@args:
import ./test.nix { inherit pkgs attest; } (
  {
    inherit backend enableNetwork;
    memorySize = memSize;
    vcpus = vcpuCount;
  }
  // removeAttrs args [
    "pkgs"
    "attest"
    "memSize"
    "vcpuCount"
  ]
)
