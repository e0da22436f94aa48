# The packages of tests/ in the place of nixpkgs: nix flake check --override-input nixpkgs path:nix/tests.
{
  outputs = _: rec {
    lib = import ./lib.nix;
    legacyPackages = lib.genAttrs [
      "x86_64-linux"
      "aarch64-linux"
    ] (system: import ./pkgs.nix { inherit lib system; });
  };
}
