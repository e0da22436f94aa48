# A NixOS machine of a lab.
{
  pkgs,
  lib ? pkgs.lib,
  backend,
  modules,
  specialArgs ? { },
}:
import (pkgs.path + "/nixos/lib/eval-config.nix") {
  inherit lib specialArgs;
  system = null; # that of pkgs
  modules = [
    ./modules/test-instrumentation.nix
    {
      nixpkgs.pkgs = pkgs;
      testing = {
        inherit backend;
      };
    }
  ]
  ++ lib.optional (backend == "qemu") (pkgs.path + "/nixos/modules/virtualisation/qemu-vm.nix")
  ++ modules;
}
