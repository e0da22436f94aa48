# attest for a package set: packages and functions.
{
  pkgs,
  lib ? pkgs.lib,
  version ? "0-dev",
}:
let
  checks = import ./checks.nix { inherit pkgs lib attest; };
  attest = pkgs.callPackage ./package.nix {
    inherit version;
    tests = checks;
  };
  nixos-test-driver = pkgs.callPackage ./nixos-test-driver.nix { inherit attest; };
  given = args: { inherit pkgs lib attest; } // args;
in
{
  inherit attest nixos-test-driver checks;
  makeTest = import ./test.nix { inherit pkgs lib attest; };
  makeDriver = args: import ./driver.nix (given args);
  makeSnapshot = args: import ./make-snapshot.nix (given args);
  makeRootfs = args: import ./make-rootfs.nix ({ inherit pkgs lib; } // args);
  makeStoreImage = args: import ./make-store-image.nix ({ inherit pkgs lib; } // args);
  makeSharedStoreImage = args: import ./make-shared-store-image.nix ({ inherit pkgs lib; } // args);
  bench = import ./bench.nix { inherit pkgs lib attest; };
  perfBudget = import ./perf-budget.nix { inherit pkgs lib; };
}
