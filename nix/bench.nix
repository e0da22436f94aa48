# nix build .#bench: one small test on each backend, and what its boot, a command and all of it
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
      # A build has no cache, so a snapshot would only be one boot more.
      preScript = "export ATTEST_BOOT=cold";
      test = ''
        def main():
            subtest("multi-user.target", lambda: machine.wait_for_unit("multi-user.target"))
            subtest("exec", lambda: machine.succeed("true"))
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
      "main/multi-user.target" = hour;
      "main/exec" = hour;
    };
  });
}
