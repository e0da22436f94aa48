# Options of NixOS that nix/ sets or reads, with NixOS' types and defaults. What a machine is built of
# is text here that names what it was built from.
{ config, lib, ... }:
let
  inherit (lib) mkOption types;
  option = type: default: mkOption { inherit type default; };
  settings = option (types.attrsOf types.anything) { };
in
{
  options = {
    nixpkgs.pkgs = mkOption { type = types.raw; };
    system.name = option types.str config.networking.hostName;
    system.build = option (types.attrsOf types.raw) { };
    system.boot.loader.initrdFile = option types.str "initrd";
    system.boot.loader.kernelFile = option types.str (
      if config.nixpkgs.pkgs.stdenv.hostPlatform.isx86 then "bzImage" else "Image"
    );
    networking = {
      hostName = option types.str "nixos";
      useDHCP = option types.bool true;
      dhcpcd.enable = option types.bool true;
      usePredictableInterfaceNames = option types.bool true;
      defaultGateway = option (types.nullOr types.str) "10.0.2.2";
      nameservers = option (types.listOf types.str) [ "10.0.2.3" ];
      firewall.enable = option types.bool true;
      extraHosts = option types.lines "";
      interfaces = option (types.attrsOf types.anything) { };
    };
    systemd.services = option (types.attrsOf types.anything) { };
    systemd.settings = settings;
    services.journald.settings = settings;
    services.headscale = settings;
    services.tailscale = settings;
    environment.etc = settings;
    security.pki.certificateFiles = option (types.listOf types.path) [ ];
    services.logrotate.enable = option types.bool true;
    boot = {
      kernelParams = option (types.listOf types.str) [ ];
      kernelModules = option (types.listOf types.str) [ ];
      initrd.availableKernelModules = option (types.listOf types.str) [ ];
      kernel.sysctl = settings;
      consoleLogLevel = option types.int 4;
      loader.grub.enable = option types.bool true;
      kernelPackages = mkOption { type = types.raw; };
    };
    fileSystems = option (types.attrsOf types.anything) { };
    users.users = option (types.attrsOf types.anything) { };
    environment.systemPackages = option (types.listOf types.package) [ ];
    documentation.enable = option types.bool true;
  };

  config = {
    _module.args.pkgs = config.nixpkgs.pkgs;
    boot.kernelPackages = lib.mkDefault {
      kernel.dev = "/nix/store/kernel-dev";
      kernel.outPath = "/nix/store/kernel";
    };
    system.build = {
      # An init, and what it refers to.
      toplevel =
        let
          generation = config.nixpkgs.pkgs.writeText "etc-${config.networking.hostName}" (
            builtins.toJSON {
              inherit (config.networking) extraHosts interfaces;
              inherit (config.boot) kernelParams;
            }
          );
        in
        config.nixpkgs.pkgs.runCommand "nixos-system-${config.networking.hostName}" { } ''
          mkdir $out
          ln -s ${generation} $out/etc
          printf '#!/bin/sh\necho this is %s, of %s\n' ${config.networking.hostName} ${generation} >$out/init
          chmod +x $out/init
        '';
      initialRamdisk = config.nixpkgs.pkgs.runCommand "initrd-${config.networking.hostName}" { } ''
        mkdir $out
        printf 070701 >$out/initrd
      '';
    };
  };
}
