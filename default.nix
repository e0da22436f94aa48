# attest without flakes: nix-build -A attest, or (import ./. { }).makeTest { … }.
{
  pkgs ? import <nixpkgs> { },
}:
import ./nix { inherit pkgs; }
