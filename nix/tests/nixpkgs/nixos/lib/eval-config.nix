# As much of NixOS as nix/ uses.
{
  lib,
  modules,
  specialArgs ? { },
  system ? null,
}:
lib.evalModules {
  inherit specialArgs;
  modules = [ ../modules/options.nix ] ++ modules;
}
