# Tests by nix/ of machines that a start script starts, with the programs of this host.
{
  attestDir ? "/nonexistent", # has bin/attest
  goRoot ? "", # in its place: attest's overlay, built by this Go
  startScript ? "", # @CARDS@ stands for the cards of the lab's networks
  vmmDir ? "/nonexistent", # has bin/firecracker
}:
let
  lib = import ../../../nix/tests/lib.nix;
  pkgs = import ../../../nix/tests/pkgs.nix {
    inherit lib attestDir goRoot;
    overlay = if goRoot == "" then _: _: { } else import ../../../nix/overlay.nix;
    startScript =
      config:
      builtins.replaceStrings
        [ "@CARDS@" ]
        [ (lib.concatStringsSep " " config.virtualisation.qemu.options) ]
        startScript;
  };
  makeTest = import ../../../nix/test.nix { inherit pkgs lib; };
  perfBudget = import ../../../nix/perf-budget.nix { inherit pkgs lib; };
  nodes = {
    client = { };
    server = { };
  };
  # Machines on a microVM with their stores, and with one store beside their roots.
  onMicroVM =
    splitStore:
    makeTest {
      name = "disks";
      backend = "cloud-hypervisor";
      inherit nodes splitStore;
      testScript = "";
    };
in
rec {
  # Their disks.
  images = {
    root = import ../../../nix/make-rootfs.nix {
      inherit pkgs lib;
      config = (onMicroVM false).nodes.server;
      freeSpace = 32;
    };
    minimal = import ../../../nix/make-rootfs-minimal.nix {
      inherit pkgs lib;
      config = (onMicroVM true).nodes.server;
      freeSpace = 32;
    };
    shared = (onMicroVM true).storeImage;
    store = import ../../../nix/make-store-image.nix {
      inherit pkgs lib;
      config = (onMicroVM true).nodes.server;
    };
  };
  passes = makeTest {
    name = "passes";
    inherit nodes;
    testScript = ./passes.py;
    usePrebuiltSnapshots = true;
  };
  # What passes took, within budgets and over one.
  budget = perfBudget {
    checks.passes = {
      test = passes;
      budget = {
        total = 3600000;
        boot = 3600000;
        main = 3600000;
        "main/a split store" = 3600000;
      };
    };
  };
  overBudget = perfBudget {
    checks.passes = {
      test = passes;
      budget.total = 1;
    };
  };
  # A prompt after a script in Python, and one on what setup of a file in Starlark leaves.
  prompts = lib.mapAttrs (_: test: test.driverInteractive) {
    python = makeTest {
      name = "prompt-python";
      inherit nodes;
      testScript = ''
        start_all()
        for machine in machines:
            machine.wait_for_unit("multi-user.target")
        print("the script has run")
      '';
      usePrebuiltSnapshots = true;
    };
    starlark = makeTest {
      name = "prompt-starlark";
      inherit nodes;
      test = ''
        def setup():
            server.wait_for_unit("multi-user.target")
            print("the lab is set up")

        def test_name():
            assert_eq(server.succeed("echo hello"), "hello\n")
            print("the test has passed")
      '';
      usePrebuiltSnapshots = true;
    };
  };
  # What boot, command and all take.
  bench = import ../../../nix/bench.nix {
    inherit pkgs lib;
    backends = [ "qemu" ];
  };
  agent = pkgs.attest.agent;
  # What the flake checks, and its examples: those that a start script can run here, and the drivers of
  # all, whose scripts are checked.
  checks = import ../../../nix/checks.nix { inherit pkgs lib; };
  onQEMU = {
    inherit (checks)
      integration
      integration-multi-vm
      make-test-multi
      make-test-smoke
      starlark
      ;
  };
  # A snapshot of a machine on a microVM wants the VMM.
  drivers = lib.mapAttrs (_: test: test.driver) (
    removeAttrs checks [
      "cloud-hypervisor-prebuilt"
      "firecracker-prebuilt"
    ]
    // lib.listToAttrs (
      lib.concatLists (
        lib.mapAttrsToList (name: lib.mapAttrsToList (language: lib.nameValuePair "${name}-${language}")) (
          import ../../../nix/examples/headscale {
            inherit pkgs;
            attest = { inherit makeTest; };
          }
        )
      )
    )
  );
  # Tests whose network cards are TAPs: of machines that are processes of the host, and of two on
  # microVMs, whose kernel nobody boots.
  taps = {
    mock = import ../../../nix/run.nix {
      inherit pkgs lib;
      name = "taps-mock";
      kvm = false;
      driver = import ../../../nix/driver.nix {
        inherit pkgs lib;
        name = "taps-mock";
        vlans = [ 1 ];
        machines =
          map
            (name: {
              inherit name;
              backend = "mock";
            })
            [
              "client"
              "server"
            ];
        script = pkgs.writeText "taps.star" ''
          def test_reach():
              start_all()
              client.wait_until_succeeds("ping -c 1 -w 2 server")
        '';
      };
    };
    microVM = makeTest {
      name = "taps-microvm";
      backend = "firecracker";
      firecrackerPackage.outPath = vmmDir;
      nodes = lib.mapAttrs (_: _: {
        boot.kernelPackages.kernel.dev = pkgs.runCommand "kernel" { } ''
          mkdir $out
          printf '\x7fELF Linux version 6.1.0-nobodys (somebody@somewhere) ' >$out/vmlinux
        '';
      }) nodes;
      testScript = ''
        start_all()
        for machine in machines:
            assert machine.succeed("echo hello") == "hello\n"
      '';
      # On a host that seems to have KVM, with a shell of the guest instead of the agent.
      preScript = "export ATTEST_ACCEL=kvm ATTEST_UPGRADE=never ATTEST_BOOT=cold";
    };
  };
  # It fails before it has started a machine.
  fails = makeTest {
    name = "fails";
    inherit nodes;
    testScript = "raise AssertionError('there is nothing to see')\n";
  };
  # The root shell on vsock that a node has on a microVM: its unit, which names a program.
  vsock =
    let
      inherit ((onMicroVM false).nodes.server.systemd.services) vsock-backdoor;
    in
    pkgs.writeText "vsock-backdoor.json" (
      builtins.toJSON (removeAttrs vsock-backdoor [ "description" ])
    );
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
