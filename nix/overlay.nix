# attest in a package set.
final: _: {
  attest = final.callPackage ./package.nix { };
  attest-nixos-test-driver = final.callPackage ./nixos-test-driver.nix { };
}
