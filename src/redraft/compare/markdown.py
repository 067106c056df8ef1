"""The report of a study as Markdown, from the content of ``results.json`` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redraft.compare.plan import clock
from redraft.compare.units import (
    Results,
    by_family,
    memory,
    primary,
    probability,
    quantity,
    seconds,
    shortened,
    trained_as,
)
from redraft.compare.verdict import signed


def markdown(found: Results) -> str:
    """The report as Markdown: verdict, caveats and tables."""
    words, task = found["verdict"], found["task"]
    parts = [f"# {' or '.join(found['study']['families']).capitalize()}?", "", f"**{words['headline']}**", ""]
    parts += [words["advice"], ""] if words["advice"] else []
    parts += [f"- {line['text']}" for line in words["lines"]]
    parts += ["", "## To bear in mind", "", *[f"- {note}" for note in found["caveats"]], ""]
    head = ["setting", *(m["label"] for m in task["metrics"]), "difference (95 %)", "verdict", "p (Holm)"]
    rows = []
    for row in by_family(found):
        if not row["quality"]:
            continue
        tested = row["against_baseline"].get(task["primary"])
        values = [_plain_interval(row["quality"].get(m["name"])) for m in task["metrics"]]
        tests = ["", "baseline" if row["id"] == found["baseline"]["setting"] else "", ""]
        if tested:
            span = f"{signed(tested['difference'])} ({signed(tested['low'])} to {signed(tested['high'])})"
            word = "void" if words["void"] else tested["verdict"]
            tests = [span, word, probability(tested["p_holm"])]
        rows.append([row["label"] + (f" [{', '.join(row['chosen'])}]" if row["chosen"] else ""), *values, *tests])
    for floor in found["floors"]["texts"]:
        values = [_plain_interval(floor["quality"].get(m["name"])) for m in task["metrics"]]
        rows.append([floor["name"], *values, "", "floor", ""])
    parts += [f"## Quality (margin ±{task['margin']:g} {primary(found)})", "", *_table(head, rows), ""]
    parts += ["## Speed, compute and memory", "", *_speed_lines(found), ""]
    if found.get("control"):
        parts += ["## Control", "", *_control_lines(found), ""]
    if found.get("rival"):
        parts += ["## Against a service", "", *_rival_lines(found), ""]
    parts += ["## Training", "", *_training_lines(found), ""]
    if found["missing"]:
        parts += ["## Missing", "", *[f"- {m['what']}: {m['why']}" for m in found["missing"]], ""]
    machine = found["machine"]
    parts += [
        "## How this was measured",
        "",
        f"- command: `{found['command']}`",
        f"- task: {task['name']} ({task['reason']})",
        f"- machine: {machine.get('gpu') or machine.get('cpu')}, {machine.get('cores')} cores",
        f"- software: redraft {found['redraft']}, torch {machine.get('torch')}, Python {machine.get('python')}",
        "- settings chosen on validation rows, everything above measured on test rows",
    ]
    return "\n".join(parts) + "\n"


def _speed_lines(found: Results) -> list[str]:
    rows = [row for row in by_family(found) if row["work"] or row["speed"]]
    sizes = sorted({s["batch"] for row in rows for s in row["speed"]})
    head = ["setting", "passes", "tokens a text", "compute a token", "peak memory"]
    for batch in sizes:
        head += [f"p50, batch {batch}", f"p95, batch {batch}", f"tokens/s, batch {batch}", f"speed-up, batch {batch}"]
        head += [f"cost per 1000, batch {batch}"]
    lines = []
    for row in rows:
        work = row["work"]
        line = [row["label"]]
        line += [f"{work['nfe']:.1f}", f"{work['tokens']:.1f}"] if work else ["", ""]
        line += [f"{quantity(work['flops_per_token'])}FLOP" if work else "", memory(row["peak_memory"])]
        for batch in sizes:
            speed = next((s for s in row["speed"] if s["batch"] == batch), None)
            if speed is None:
                line += [""] * 5
                continue
            up, cost = speed["speedup"], speed["cost_per_thousand"]
            line += [seconds(speed["p50"]), seconds(speed["p95"]), f"{speed['tokens_per_second']:,.0f}"]
            line += [f"{up['ratio']:.2f}x ({up['low']:.2f} to {up['high']:.2f})" if up else ""]
            line += ["" if cost is None else f"{cost:.3g}"]
        lines.append(line)
    return _table(head, lines)


def _control_lines(found: Results) -> list[str]:
    control, name = found["control"], primary(found)
    lines = [f"Constraint: {kind} `{shortened(text)}`" for kind, text in control["constraint"].items()]
    lines += ["", f"{control['references']:.1f} % of the test references satisfy it."]
    void = found["verdict"]["void"] or control["void"]
    sizes = sorted({s["batch"] for row in control["settings"] for s in row["speed"]})
    head = ["setting", "valid % without", "valid % with", f"{name} without", f"{name} with", "difference (95 %)"]
    head += ["against the baseline, both constrained (95 %)", "verdict", "passes with"]
    head += [f"p50 with, batch {batch} (times without)" for batch in sizes]
    rows = []
    for row in control["settings"]:
        line = [row["label"]]
        line += [_plain_interval(row[what][how]) for what in ("valid", "quality") for how in ("without", "with")]
        against = row["against_baseline"]
        line += [_moved(row["cost"]), _moved(against)]
        line += ["" if against is None else "void" if void else against["verdict"]]
        line.append(f"{row['nfe']['with']:.1f}")
        timed = {s["batch"]: s for s in row["speed"]}
        line += [f"{seconds(s['p50'])} ({s['times']['ratio']:.2f}x)" if s else "" for s in map(timed.get, sizes)]
        rows.append(line)
    return [*lines, "", *_table(head, rows)]


def _moved(tested: Mapping[str, Any] | None) -> str:
    if tested is None:
        return ""
    return f"{signed(tested['difference'])} ({signed(tested['low'])} to {signed(tested['high'])})"


def _rival_lines(found: Results) -> list[str]:
    rival = found["rival"]
    lines = [f"{rival['model']} at {rival['endpoint']}: {rival['answered']} of {rival['asked']} items answered."]
    if rival["p50"] is not None:
        lines += [f"One request: p50 {seconds(rival['p50'])}, p95 {seconds(rival['p95'])}, network included."]
    if rival["cost_per_thousand"] is not None:
        lines += [f"Price per thousand requests: {rival['cost_per_thousand']:.3g}."]
    lines += [f"Not answered: {entry['why']} ({entry['count']} times)." for entry in rival["failures"]]
    rows = [
        [entry["label"], f"{signed(entry['difference'])} ({signed(entry['low'])} to {signed(entry['high'])})"]
        + [entry["verdict"]]
        for entry in rival["against"]
    ]
    value = _plain_interval(rival["quality"].get(found["task"]["primary"]))
    return [*lines, "", *_table(["ours against it", f"{primary(found)} (its own: {value})", "verdict"], rows)]


def _training_lines(found: Results) -> list[str]:
    head = ["family", "seed", "parameters", "tokens", "passes", "compute", "time", "validation, bits per byte"]
    rows = []
    for run in found["training"]:
        check = run["validation"]
        value = f"{check['bits_per_byte']:.3f}" if check else ""
        if check and check["is_bound"]:
            value = f"<= {value} ± {check['bits_error']:.3f}"
        rows.append(
            [
                trained_as(found, run),
                str(run["seed"]),
                f"{run['parameters']:,}",
                f"{run['tokens']:,}",
                f"{run['passes']:.1f}",
                f"{quantity(run['flops'])}FLOP",
                clock(run["seconds"]),
                value,
            ]
        )
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return ["(nothing was measured)"]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines]


def _plain_interval(value: Mapping[str, Any] | None) -> str:
    return f"{value['value']:.1f} ({value['low']:.1f} to {value['high']:.1f})" if value else ""
