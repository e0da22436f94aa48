"""Compares the times of runs with budgets: budget.py BUDGETS.json OUT

BUDGETS.json is {"NAME": {"events": "…/events.jsonl", "budget": {"total": ms, "boot": ms, "test_x": ms, "main/SUBTEST": ms}}}.
OUT gets summary.tsv (check, what, milliseconds, budget, verdict) and phases.tsv (check, machine, state,
milliseconds). The exit code is 1 if a budget was exceeded, 2 if one names what no run has.
"""

import json
import pathlib
import sys


def times(path):
    """Returns milliseconds by what took them, and (machine, state, milliseconds)."""
    spent, phases = {}, []
    with open(path, encoding="utf-8") as events:
        for line in events:
            event = json.loads(line)
            kind = event["type"]
            if kind == "run_finished":
                spent["total"] = event["duration_s"] * 1000
            elif kind == "test_finished":
                spent[event["test"]] = event["duration_s"] * 1000
            elif kind == "subtest_finished":
                spent[event.get("test", "setup") + "/" + event["subtest"]] = event["duration_s"] * 1000
            elif kind == "machine_state" and "after_s" in event:
                after = event["after_s"] * 1000
                phases.append((event["machine"], event["state"], after))
                if event["state"] == "ready":
                    spent["boot"] = max(spent.get("boot", 0), after)  # of the slowest machine
    return spent, phases


def main(budgets, out):
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    code = 0
    with (
        open(budgets, encoding="utf-8") as f,
        open(out / "summary.tsv", "w", encoding="utf-8") as summary,
        open(out / "phases.tsv", "w", encoding="utf-8") as phases,
    ):
        print("check", "what", "ms", "budget_ms", "verdict", sep="\t", file=summary)
        print("check", "machine", "state", "ms", sep="\t", file=phases)
        for check, given in sorted(json.load(f).items()):
            spent, seen = times(given["events"])
            for machine, state, after in seen:
                print(check, machine, state, round(after), sep="\t", file=phases)
            for what, limit in sorted(given["budget"].items()):
                if what not in spent:
                    print(f"{check}: the budget names {what!r}, and the run has only {', '.join(sorted(spent))}", file=sys.stderr)
                    code = 2
                    continue
                verdict = "ok" if spent[what] <= limit else "over"
                print(check, what, round(spent[what]), limit, verdict, sep="\t", file=summary)
                if verdict == "over":
                    print(f"{check}: {what} took {spent[what]:.0f} ms, its budget is {limit} ms", file=sys.stderr)
                    code = max(code, 1)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
