# Compares what tests took with budgets, in milliseconds: a build that fails if one
# was exceeded. $out has summary.tsv and phases.tsv.
#
#   perfBudget { name = "smoke"; checks.smoke = { test = …; budget = { total = 60000; boot = 8000; }; }; }
#
# A budget is for "total" (the run), "boot" (until the slowest machine was ready), a test by
# its name (that of a script is "main"), or a subtest ("main/NAME").
{
  pkgs,
  lib ? pkgs.lib,
}:
{
  name ? "budget",
  checks,
}:
pkgs.runCommand "attest-perf-${name}"
  {
    nativeBuildInputs = [ pkgs.python3 ];
    budgets = builtins.toJSON (
      lib.mapAttrs (
        check:
        {
          test,
          budget,
        }:
        lib.throwIf (budget == { }) "attest: perf-budget: check ${check} has no budget" {
          inherit budget;
          events = "${test}/events.jsonl";
        }
      ) checks
    );
    passAsFile = [ "budgets" ];
  }
  ''
    python3 ${./budget.py} "$budgetsPath" $out
    cat $out/summary.tsv
  ''
