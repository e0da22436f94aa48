# lib.makeTest on QEMU.
{
  pkgs,
  attest ? pkgs.attest,
  ...
}@args:
import ./test.nix { inherit pkgs attest; } (
  {
    backend = "qemu";
  }
  // removeAttrs args [
    "pkgs"
    "attest"
  ]
)
