# For a test of NixOS' own framework (runTest, runNixOSTest): imports = [ attest.nixosModules.test ].
# attest runs the test in the place of NixOS' driver, and machines have what lets them start from
# a snapshot: their store as an image instead of a 9p file system, and attest's agent in it.
#
# packages is { attest, nixos-test-driver }, or a function from hostPkgs to that.
packages:
{
  config,
  lib,
  options,
  ...
}:
let
  ours = if lib.isFunction packages then packages config.hostPkgs else packages;
  driver = options.pythonTestDriverPackage or null;

  node = {
    virtualisation.useNixStoreImage = lib.mkDefault true;
    virtualisation.writableStore = lib.mkDefault true;
    virtualisation.sharedDirectories = lib.mkForce { };
    environment.systemPackages = [ ours.attest.agent ];
  };
in
{
  config = lib.mkMerge [
    # Where the option is read-only, its default is the package of this name.
    {
      _module.args.hostPkgs = lib.mkForce (config.hostPkgs // { inherit (ours) nixos-test-driver; });
    }
    (lib.optionalAttrs (driver != null && !(driver.readOnly or false)) {
      pythonTestDriverPackage = lib.mkForce ours.nixos-test-driver;
    })
    # Older frameworks build their driver from a path of their own.
    (lib.optionalAttrs (driver == null) {
      driver = lib.mkForce (
        import ../nixos-driver.nix {
          inherit lib config;
          pkgs = config.hostPkgs;
          inherit (ours) nixos-test-driver;
        }
      );
    })
    (if options ? nodeDefaults then { nodeDefaults = node; } else { defaults = node; })
  ];
}
