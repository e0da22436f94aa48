{
  description = "Integration tests on real virtual machines";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      version = "0-${self.shortRev or self.dirtyShortRev or "dev"}";
      of = pkgs: import ./nix { inherit pkgs version; };
      each =
        f:
        lib.genAttrs systems (
          system: f (of nixpkgs.legacyPackages.${system}) nixpkgs.legacyPackages.${system}
        );
      # A function of makeTest's arguments and pkgs.
      withPkgs = name: { pkgs, ... }@args: (of pkgs).${name} (removeAttrs args [ "pkgs" ]);
    in
    {
      packages = each (
        ours: _: {
          default = ours.attest;
          inherit (ours) attest nixos-test-driver bench;
        }
      );
      overlays.default = import ./nix/overlay.nix;
      lib = lib.genAttrs [
        "makeTest"
        "makeDriver"
        "makeSnapshot"
        "makeRootfs"
        "makeStoreImage"
        "makeSharedStoreImage"
        "perfBudget"
      ] withPkgs;
      nixosModules = {
        # For the nodes of a test of your own framework.
        testInstrumentation.imports = [ ./nix/modules/test-instrumentation.nix ];
        # For a test of NixOS' framework.
        test = import ./nix/modules/test.nix of;
      };
      apps = each (
        ours: _: {
          default = {
            type = "app";
            program = "${ours.attest}/bin/attest";
          };
        }
      );
      devShells = each (
        ours: pkgs: {
          default = pkgs.mkShell {
            inputsFrom = [ ours.attest ];
            packages = with pkgs; [
              e2fsprogs
              erofs-utils
              mmdebstrap
              python3
              qemu
              tesseract
            ];
          };
        }
      );
      formatter = each (_: pkgs: pkgs.nixfmt-tree or pkgs.nixfmt-rfc-style);
      checks = each (ours: _: ours.checks);
    };
}
