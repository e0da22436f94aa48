# The driver of a test for frameworks that have no option for its package (up to NixOS
# 25.05), with the environment that their driver takes.
{
  pkgs,
  lib ? pkgs.lib,
  config, # of the test
  nixos-test-driver,
}:
let
  driver = nixos-test-driver.override {
    inherit (config) enableOCR extraPythonPackages;
    qemu_pkg = config.qemu.package;
  };
  nodes = lib.attrValues config.nodes;
  startScripts = map (node: "${node.system.build.vm}/bin/run-${node.system.name}-vm") nodes;
  vlans = lib.unique (
    lib.concatMap (
      node:
      node.virtualisation.vlans
      ++ lib.mapAttrsToList (_: i: i.vlan) (node.virtualisation.interfaces or { })
    ) nodes
  );
in
pkgs.runCommand "nixos-test-driver-${config.name}"
  {
    nativeBuildInputs = [ pkgs.makeWrapper ];
    testScript = config.testScriptString;
    passAsFile = [ "testScript" ];
    preferLocalBuild = true;
    passthru = config.passthru or { };
    meta = (config.meta or { }) // {
      mainProgram = "nixos-test-driver";
    };
  }
  ''
    mkdir -p $out/bin
    cp $testScriptPath $out/test-script
    makeWrapper ${driver}/bin/nixos-test-driver $out/bin/nixos-test-driver --inherit-argv0 \
      --set startScripts ${lib.escapeShellArg (lib.concatStringsSep " " startScripts)} \
      --set testScript $out/test-script \
      --set globalTimeout ${toString config.globalTimeout} \
      --set vlans ${lib.escapeShellArg (lib.concatMapStringsSep " " toString vlans)} \
      ${lib.concatMapStringsSep " " (
        arg: "--add-flags ${lib.escapeShellArg arg}"
      ) config.extraDriverArgs}
  ''
