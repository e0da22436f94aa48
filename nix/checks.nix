# What nix flake check runs: each backend, one machine and two, and what is special to it.
{
  pkgs,
  lib ? pkgs.lib,
  attest ? pkgs.attest,
}:
let
  makeTest = import ./test.nix { inherit pkgs lib attest; };
  machine = { };

  smoke = ''
    machine.wait_for_unit("multi-user.target")
    assert machine.succeed("echo hello").strip() == "hello"
  '';

  pair = ''
    start_all()
    for machine in machines:
        machine.wait_for_unit("network.target")
    client.succeed("ping -c 1 server")
    server.succeed("ping -c 1 client")
    server.block()
    client.fail("ping -c 1 -W 1 server")
    server.unblock()
    client.wait_until_succeeds("ping -c 1 -W 1 server")
  '';

  single = args: makeTest ({ nodes.machine = machine; } // args);
  two =
    args:
    makeTest (
      {
        nodes.client = machine;
        nodes.server = machine;
        testScript = pair;
      }
      // args
    );
in
{
  integration = single {
    name = "integration";
    testScript = smoke;
  };
  integration-multi-vm = two { name = "integration-multi-vm"; };
  make-test-smoke = import ./make-test.nix {
    inherit pkgs attest;
    name = "make-test-smoke";
    nodes.machine = machine;
    testScript = smoke;
  };
  make-test-multi = import ./make-test.nix {
    inherit pkgs attest;
    name = "make-test-multi";
    nodes.client = machine;
    nodes.server = machine;
    testScript = pair;
  };
  starlark = single {
    name = "starlark";
    test = ''
      def test_hello():
          machine.wait_for_unit("multi-user.target")
          assert_eq(machine.succeed("echo hello"), "hello\n")
    '';
  };
}
// lib.listToAttrs (
  lib.concatMap
    (
      backend:
      map (check: lib.nameValuePair "${backend}-${check.name}" check.value) (
        lib.attrsToList {
          smoke = single {
            name = "${backend}-smoke";
            inherit backend;
            testScript = smoke;
          };
          split = single {
            name = "${backend}-split";
            inherit backend;
            splitStore = true;
            testScript = smoke;
          };
          network = two {
            name = "${backend}-network";
            inherit backend;
          };
          snapshot = single {
            name = "${backend}-snapshot";
            inherit backend;
            test = ''
              def test_restored():
                  machine.succeed("touch /root/before")
                  checkpoint("before")
                  machine.succeed("touch /root/after")
                  restore("before")
                  machine.succeed("test -e /root/before && test ! -e /root/after")
            '';
          };
          prebuilt = single {
            name = "${backend}-prebuilt";
            inherit backend;
            usePrebuiltSnapshots = true;
            testScript = smoke;
          };
        }
      )
    )
    [
      "firecracker"
      "cloud-hypervisor"
    ]
)
