# nix build .#bench: one small test on each backend, and what boot, command and total
# took: $out/summary.tsv and phases.tsv.
{
  pkgs,
  lib ? pkgs.lib,
  attest ? pkgs.attest,
  backends ? [
    "qemu"
    "firecracker"
    "cloud-hypervisor"
  ],
}:
let
  test =
    backend:
    import ./test.nix { inherit pkgs lib attest; } {
      name = "bench-${backend}";
      inherit backend;
      nodes.machine = { };
      test = ''
        def test_boot():
            machine.start()
            machine.wait_for_unit("multi-user.target")

        def test_exec():
            machine.succeed("true")
      '';
    };
  hour = 3600000;
in
import ./perf-budget.nix { inherit pkgs lib; } {
  name = "bench";
  # No limits: it measures.
  checks = lib.genAttrs backends (backend: {
    test = test backend;
    budget = {
      total = hour;
      boot = hour;
      test_boot = hour;
      test_exec = hour;
    };
  });
}
