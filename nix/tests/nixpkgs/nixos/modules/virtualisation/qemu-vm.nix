# As much of NixOS' module as nix/ uses. The machine is a start script that pkgs.startVM makes: of a
# Debian guest, where one is really started.
{ config, lib, ... }:
let
  inherit (lib) mkOption types;
  option = type: default: mkOption { inherit type default; };
in
{
  options.virtualisation = {
    memorySize = option types.int 1024;
    cores = option types.int 1;
    useNixStoreImage = option types.bool false;
    writableStore = option types.bool true;
    sharedDirectories = option (types.attrsOf types.anything) {
      xchg = {
        source = "$TMPDIR/xchg";
        target = "/tmp/xchg";
      };
    };
    qemu.options = option (types.listOf types.str) [ ];
    vlans = option (types.listOf types.int) [ 1 ];
  };
  config.system.build.vm = config.nixpkgs.pkgs.startVM config;
}
