# Tests by nix/ of machines that a start script starts, with the programs of this host.
{
  attestDir,
  startScript, # @CARDS@ stands for the cards of the lab's networks
}:
let
  lib = import ../../../nix/tests/lib.nix;
  pkgs = import ../../../nix/tests/pkgs.nix {
    inherit lib attestDir;
    startScript =
      config:
      builtins.replaceStrings
        [ "@CARDS@" ]
        [ (lib.concatStringsSep " " config.virtualisation.qemu.options) ]
        startScript;
  };
  makeTest = import ../../../nix/test.nix { inherit pkgs lib; };
  nodes = {
    client = { };
    server = { };
  };
in
{
  passes = makeTest {
    name = "passes";
    inherit nodes;
    testScript = ./passes.py;
  };
  # It fails before it has started a machine.
  fails = makeTest {
    name = "fails";
    inherit nodes;
    testScript = "raise AssertionError('there is nothing to see')\n";
  };
  # What the instrumentation has systemd do, and what a node knows.
  node =
    let
      inherit
        ((makeTest {
          name = "unit";
          inherit nodes;
          testScript = "";
        }).nodes.server
        )
        systemd
        networking
        ;
    in
    {
      units = lib.mapAttrs (_: unit: removeAttrs unit [ "description" ]) {
        inherit (systemd.services) attest-agent backdoor;
      };
      hosts = networking.extraHosts;
    };
}
