"""The report of a study as a page for a browser, from the content of ``results.json`` alone.

The page is one file: no script, no font, no picture from elsewhere. Every text that a model or the user's data hold is
escaped. A study that is void or unfinished renders too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from redraft.compare import charts, figures
from redraft.compare.plan import clock
from redraft.compare.units import (
    Results,
    by_family,
    colour,
    label_of,
    memory,
    primary,
    probability,
    quantity,
    seconds,
    shortened,
    trained_as,
)
from redraft.compare.verdict import signed

Row = Mapping[str, Any]

_WORDS = {
    "Interval": "95 % percentile bootstrap over test items, and over training seeds where there are several.",
    "Same": "two one-sided tests at 5 % rule out a difference as large as the margin: the 90 % interval is inside it.",
    "Better, worse": "the 95 % interval of the paired difference excludes zero, and the setting is not the same.",
    "Undecided": "anything else. It is no evidence that two systems are equal.",
    "p (Holm)": "paired approximate randomisation over test items, adjusted for all settings in the table.",
    "Passes": "calls of the network that a text took part in (NFE), the mean over texts.",
    "Void": "the baseline does not beat copying the input and an n-gram model: nothing was learnt to be compared.",
}
_TONES = {
    "same": ("good", "Same quality"),
    "better": ("good", "Better quality"),
    "worse": ("bad", "Worse quality"),
    "undecided": ("warn", "Undecided"),
}


def html(found: Results) -> str:
    """One self-contained page."""
    style = files("redraft.compare").joinpath("report.css").read_text(encoding="utf-8")
    sections = (
        _header,
        _verdict,
        _tiles,
        _pareto,
        _quality,
        _speed,
        _control,
        _rival,
        _lengths,
        _samples,
        _training,
        _method,
    )
    body = "\n".join(text for section in sections if (text := section(found)))
    title = escape(f"redraft: {' or '.join(found['study']['families'])}?")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{title}</title>\n<style>\n{style}</style></head>\n'
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


# ---- sections


def _header(found: Results) -> str:
    families, rows = found["study"]["families"], found["data"]["rows"]
    title = f"{' or '.join(families)}?"
    counts = [run["parameters"] for run in found["training"]]
    size = f"Models of {quantity(counts[0]).strip()} parameters, " if counts else "Models "
    how = "fine-tuned" if found["study"]["bases"] else "trained from scratch"
    lead = (
        f"{found['data']['source']}: {rows['train']:,} training rows, {found['data']['test_items']:,} test items. "
        f"{size}{how} on {quantity(found['plan']['tokens']).strip()} tokens each. {found['created'][:10]}."
    )
    kicker = f"redraft compare &middot; {escape(found['task']['name'])}"
    title = title[:1].upper() + title[1:]
    return f'<header><p class="kicker">{kicker}</p><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p></header>'


def _verdict(found: Results) -> str:
    words = found["verdict"]
    tone, tag = ("bad", "Void comparison") if words["void"] else ("warn", "No verdict")
    big, items = words["advice"] or words["headline"], [escape(reason) for reason in words["void"]]
    if words["void"]:
        big = "Nothing can be concluded: the baseline has not learnt the job. Give more data or a larger budget."
    elif words["lines"]:
        tone, tag = _TONES[words["lines"][0]["quality"]]
        items = [_bold_head(line["text"]) for line in words["lines"]]
    chips = ["preliminary: one training seed"] if words["preliminary"] else []
    chips += [] if found["complete"] else ["some pieces are missing"]
    warned = "".join(f'<span class="chip warn">{escape(chip)}</span>' for chip in chips)
    margin, seeds = found["task"]["margin"], found["study"]["seeds"]
    plain = [f"same means within ±{margin:g} {primary(found)}", f"{seeds} training seed{'s' if seeds > 1 else ''}"]
    plain += [f"{found['data']['test_items']:,} test items"]
    warned += "".join(f'<span class="chip">{escape(chip)}</span>' for chip in plain)
    return (
        f'<section class="verdict {tone}"><div class="tag">{tag}</div><p class="big">{escape(big)}</p>'
        f'{_list(items)}<div class="chips">{warned}</div></section>' + _list(map(escape, found["caveats"]), "notes")
    )


def _tiles(found: Results) -> str:
    """The baseline and the chosen settings of the others, side by side."""
    primary_name, baseline = found["task"]["primary"], found["baseline"]
    rows = [row for row in by_family(found) if primary_name in row["quality"] and row["work"]]
    wanted = [baseline["setting"], baseline["speed_setting"]]
    wanted += [rival["setting"] for line in found["verdict"]["lines"] for rival in line["rivals"]]
    shown = [row for name in wanted for row in rows if row["id"] == name]
    shown = list({row["id"]: row for row in shown}.values())
    shown += [row for row in rows if row["chosen"] and row["family"] != baseline["family"]]
    tiles = [_tile(found, row) for row in shown]
    return f'<div class="tiles">{"".join(tiles)}</div>' if len(tiles) > 1 else ""


def _tile(found: Results, row: Row) -> str:
    name = found["task"]["primary"]
    value, tested = row["quality"][name], row["against_baseline"].get(name)
    facts = [("difference", f"{signed(tested['difference'])} ({_word(found, tested)})")] if tested else []
    for speed in row["speed"]:
        times = f" ({speed['speedup']['ratio']:.2g}x)" if speed["speedup"] else ""
        facts.append((f"latency, batch {speed['batch']}", f"{seconds(speed['p50'])}{times}"))
    for speed in row["speed"][-1:]:
        facts.append((f"tokens/s, batch {speed['batch']}", f"{speed['tokens_per_second']:,.0f}"))
        if speed["cost_per_thousand"] is not None:
            facts.append((f"cost per 1000, batch {speed['batch']}", f"{speed['cost_per_thousand']:.3g}"))
    facts.append(("passes a text", f"{row['work']['nfe']:.1f}"))
    facts.append(("compute a token", f"{quantity(row['work']['flops_per_token'])}FLOP"))
    listed = "".join(f"<dt>{escape(key)}</dt><dd>{escape(text)}</dd>" for key, text in facts)
    return (
        f'<div class="tile k{colour(found, row["family"])}"><h3>{escape(row["label"])}</h3>'
        f'<p class="role">{_role(found, row)}</p>'
        f'<p class="score">{value["value"]:.1f} <small>{escape(primary(found))}</small></p>'
        f'<p class="span">95 % interval {value["low"]:.1f} to {value["high"]:.1f}</p><dl>{listed}</dl></div>'
    )


def _role(found: Results, row: Row) -> str:
    if row["id"] == found["baseline"]["setting"]:
        return "the baseline: best of its family on validation rows"
    if row["id"] == found["baseline"]["speed_setting"]:
        return "what speed is compared with: the fastest within the margin"
    if row["family"] == found["baseline"]["family"]:
        return "scores no lower than a chosen setting, and is as fast or faster"
    if len(row["chosen"]) == 2:
        return "best on validation rows, and the fastest within the margin of it"
    return "best on validation rows" if "best" in row["chosen"] else "fastest within the margin of its family’s best"


def _pareto(found: Results) -> str:
    lead = (
        "Up and to the left is better. Each point is one way of decoding, with its 95 % interval; numbers are "
        "denoising steps, and lines join settings that differ in steps only. Large points were chosen on validation "
        "rows."
    )
    return _section("Quality against latency", lead, figures.pareto(found))


def _quality(found: Results) -> str:
    """Every setting, every metric, and the tests against the baseline."""
    metrics, name = found["task"]["metrics"], found["task"]["primary"]
    rows = [row for row in by_family(found) if row["quality"]]
    tests = [row["against_baseline"][name] for row in rows if name in row["against_baseline"]]
    head = ["setting", *(m["label"] for m in metrics)]
    head += ["difference, 95 %", "", "verdict", "p (Holm)"] if tests else []
    blank = [""] * (4 if tests else 0)
    body = [
        (_kind(found, row), [_name(found, row), *_values(row, metrics), *_tested(found, row, tests)]) for row in rows
    ]
    body += [("floor", [escape(f["name"]), *_values(f, metrics), *blank]) for f in found["floors"]["texts"]]
    if people := found["floors"]["people"]:
        body.append(("floor", ["other texts by people", *_values({"quality": people}, metrics), *blank]))
    if own := found["references"]:
        values = [f"{own[m['name']]:.1f}" if m["name"] in own else "" for m in metrics]
        body.append(("floor", ["the references", *values, *blank]))
    baseline, margin = label_of(found, found["baseline"]["setting"]), found["task"]["margin"]
    lead = (
        f"Values on test rows with 95 % bootstrap intervals. Differences are to {baseline}, positive where the setting "
        f"is better; the band is the margin of ±{margin:g}."
    )
    return _section("Quality", lead, _table(head, body)) if rows else ""


def _values(row: Row, metrics: Sequence[Row]) -> list[str]:
    found = [row["quality"].get(m["name"]) for m in metrics]
    return [f"{v['value']:.1f} <small>{v['low']:.1f} to {v['high']:.1f}</small>" if v else "" for v in found]


def _tested(found: Results, row: Row, all_tests: Sequence[Row]) -> list[str]:
    """Difference, drawing, verdict and p-value."""
    tested = row["against_baseline"].get(found["task"]["primary"])
    if tested is None:
        return [""] * (4 if all_tests else 0)
    room = 3 * tested["margin"]
    axis = (min(-room, *(t["low"] for t in all_tests)), max(room, *(t["high"] for t in all_tests)))
    bounds = (tested["difference"], tested["low"], tested["high"], tested["margin"])
    return [
        f"{signed(tested['difference'])} <small>{signed(tested['low'])} to {signed(tested['high'])}</small>",
        charts.forest(*bounds, axis, colour(found, row["family"])),
        _badge(_word(found, tested)),
        escape(probability(tested["p_holm"])),
    ]


def _speed(found: Results) -> str:
    """Latency, throughput, passes, operations, memory, cost."""
    rows = [row for row in by_family(found) if row["speed"] or row["work"]]
    sizes = sorted({s["batch"] for row in rows for s in row["speed"]})
    priced = any(s["cost_per_thousand"] is not None for row in rows for s in row["speed"])
    head = ["setting", "passes", "tokens\na text", "compute\na token", "peak\nmemory"]
    head += ["batch", "p50", "p95", "tokens/s", "speed-up, 95 %"] if sizes else []
    head += ["cost\nof 1000"] if priced else []
    body = []
    for row in rows:
        timed = {s["batch"]: s for s in row["speed"]}
        lines = [_timed(timed.get(batch), batch, priced) for batch in sizes]
        cells = [_name(found, row), *_work(row["work"]), _peak(row), *map(_stacked, zip(*lines, strict=True))]
        body.append((_kind(found, row), cells))
    cuda = str(found["machine"]["device"]).startswith("cuda")
    quick = label_of(found, found["baseline"]["speed_setting"])
    where = "" if cuda else " (of the whole process: Python, torch and all models loaded)"
    lead = (
        "All settings were timed turn by turn on the same requests, so a busy moment of the machine hits all alike. "
        "Tokens are completion tokens; prompts are not counted. Compute is counted, not timed: matrix products and "
        "attention, over completion tokens. Memory is the peak while texts were written, and how much of it was new"
        f"{where}. Speed-up is in median latency against {quick}, with its 95 % interval."
    )
    if priced:
        lead += f" Cost is for a machine at {found['study']['price_per_hour']:g} an hour that is kept busy."
    return _section("Speed, compute and memory", lead, _table(head, body)) if rows else ""


def _work(work: Row | None) -> list[str]:
    if work is None:
        return [""] * 3
    return [f"{work['nfe']:.1f}", f"{work['tokens']:.1f}", f"{quantity(work['flops_per_token'])}FLOP"]


def _peak(row: Row) -> str:
    grown = f" <small>+{memory(row['memory_growth'])}</small>" if row["memory_growth"] else ""
    return memory(row["peak_memory"]).replace(" ", "&nbsp;") + grown


def _timed(speed: Row | None, batch: int, priced: bool) -> list[str]:
    """The batch size and what was timed at it."""
    if speed is None:
        return [f"{batch}", *[""] * (5 if priced else 4)]
    up, cost = speed["speedup"], speed["cost_per_thousand"]
    ratio = f"{up['ratio']:.2f}x <small>{up['low']:.2f} to {up['high']:.2f}</small>" if up else ""
    cells = [f"{batch}", seconds(speed["p50"]), seconds(speed["p95"]), f"{speed['tokens_per_second']:,.0f}", ratio]
    return cells + (["" if cost is None else f"{cost:.3g}"] if priced else [])


def _stacked(lines: Sequence[str]) -> str:
    """Several lines in one cell, those of a row at equal height."""
    return "".join(f'<div class="line">{line or "&nbsp;"}</div>' for line in lines)


def _control(found: Results) -> str:
    """The chosen settings under the study's constraint, and without it."""
    control = found.get("control")
    if not control:
        return ""
    wanted = "; ".join(f"{kind} {shortened(text)}" for kind, text in control["constraint"].items())
    lead = (
        f"The settings that validation chose, with the constraint {wanted} and without it. Valid is the share of texts "
        "that satisfy it, checked on the finished text. The difference is what the constraint does to quality, "
        "positive where it helps; beside it, the family against the baseline, both constrained. "
        f"{control['references']:.1f} % of the test references satisfy it."
    )
    sizes = sorted({s["batch"] for row in control["settings"] for s in row["speed"]})
    name = primary(found)
    head = ["setting", "valid\nwithout", "valid\nwith", f"{name}\nwithout", f"{name}\nwith", "difference, 95 %"]
    head += ["against the\nbaseline, 95 %", "verdict", *(["batch", "p50\nwith", "times\nwithout"] if sizes else [])]
    body = []
    for row in control["settings"]:
        cells = [_spot(found, row["family"], row["label"])]
        cells += [_spanned(row[what][how]) for what in ("valid", "quality") for how in ("without", "with")]
        cells += [_moved(row["cost"]), _moved(row["against_baseline"])]
        word = "void" if control["void"] else _word(found, row["against_baseline"] or {"verdict": ""})
        cells.append(_badge(word) if row["against_baseline"] else "")
        timed = {s["batch"]: s for s in row["speed"]}
        lines = [
            [f"{batch}", seconds(s["p50"]), f"{s['times']['ratio']:.2f}x"]
            if (s := timed.get(batch))
            else [f"{batch}", "", ""]
            for batch in sizes
        ]
        cells += map(_stacked, zip(*lines, strict=True))
        body.append(("first" if row["setting"] == found["baseline"]["setting"] else "", cells))
    return _section("Control", lead, _table(head, body)) if body else ""


def _spanned(value: Row) -> str:
    return f"{value['value']:.1f} <small>{value['low']:.1f} to {value['high']:.1f}</small>"


def _moved(tested: Row | None) -> str:
    if tested is None:
        return ""
    return f"{signed(tested['difference'])} <small>{signed(tested['low'])} to {signed(tested['high'])}</small>"


def _rival(found: Results) -> str:
    """A service beside our own chosen settings: quality on what it answered, latency, price."""
    rival = found.get("rival")
    if not rival:
        return ""
    name = found["task"]["primary"]
    lead = f"{rival['model']} at {rival['endpoint']} answered {rival['answered']} of {rival['asked']} items"
    lead += (
        f" with {rival['shots']} examples shown. Differences are on the items that it answered; a positive one is ours."
    )
    lead += " Its latency contains the network."
    for entry in rival["failures"]:
        lead += f" Not answered: {entry['why']} ({entry['count']}), which is not scored."
    rows = {row["id"]: row for row in found["settings"]}
    cost = rival["cost_per_thousand"]
    value = rival["quality"].get(name)
    body: list[tuple[str, Sequence[str]]] = [
        (
            "baseline",
            [
                escape(rival["model"]),
                "" if value is None else f"{value['value']:.1f} ({value['low']:.1f} to {value['high']:.1f})",
                "",
                "" if rival["p50"] is None else seconds(rival["p50"]),
                "" if cost is None else f"{cost:.3g}",
            ],
        )
    ]
    for entry in rival["against"]:
        row = rows[entry["setting"]]
        speed = row["speed"][0] if row["speed"] else None
        price = None if speed is None else row["speed"][-1]["cost_per_thousand"]
        body.append(
            (
                "",
                [
                    escape(entry["label"]),
                    f"{row['quality'][name]['value']:.1f}",
                    f"{signed(entry['difference'])} ({signed(entry['low'])} to {signed(entry['high'])}): "
                    f"{entry['verdict']}",
                    "" if speed is None else seconds(speed["p50"]),
                    "" if price is None else f"{price:.3g}",
                ],
            )
        )
    head = ["", primary(found), "difference (95 %)", "latency of one", "cost per 1000"]
    return _section("Against a service", lead, _table(head, body))


def _lengths(found: Results) -> str:
    lead = "Does either family fall behind on short or on long answers? With 95 % intervals."
    return _section("Quality by length of the answer", lead, figures.by_length(found))


def _samples(found: Results) -> str:
    cards = []
    for sample in found["samples"]:
        said = [("reference", sample["references"][0])]
        said += [(label_of(found, name), text) for name, text in sample["texts"].items()]
        lines = "".join(f'<div class="who">{escape(who)}</div>{_said(text)}' for who, text in said)
        given = f'<p class="given">{escape(sample["prompt"])}</p>'
        cards.append(f'<div class="card sample">{given}<div class="said">{lines}</div></div>')
    lead = "Test items spread evenly from the shortest reference to the longest; not picked by hand."
    return _section("Side by side", lead, "".join(cards))


def _said(text: str) -> str:
    if not text.strip():
        return '<div class="text none">(nothing)</div>'
    return f'<div class="text">{escape(text)}</div>'


def _training(found: Results) -> str:
    head = ["family", "seed", "parameters", "tokens", "passes", "compute", "time", "tokens/s", "peak\nmemory"]
    head.append("validation,\nbits per byte")
    body = []
    for run in found["training"]:
        check = run["validation"]
        cells = [
            _spot(found, run["family"], trained_as(found, run)),
            f"{run['seed']}",
            f"{run['parameters']:,}",
            f"{run['tokens']:,}",
        ]
        cells += [f"{run['passes']:.1f}", f"{quantity(run['flops'])}FLOP", clock(run["seconds"])]
        cells += [f"{run['tokens_per_second']:,.0f}" if run["tokens_per_second"] else "", memory(run["peak_memory"])]
        body.append(
            ("", [*cells, _bits(check["bits_per_byte"], check["bits_error"], check["is_bound"]) if check else ""])
        )
    lead = (
        "Every family had the same data, tokenizer, network size, optimizer and training tokens. The model of the best "
        "validation was kept: each family at its own best stopping point. Compute and wall-clock stand beside the "
        "tokens, because equal tokens are not equal work."
    )
    cards = [f'<div class="card"><h3>Learning curves</h3>{drawn}</div>' if (drawn := figures.learning(found)) else ""]
    cards.append(_likelihood(found))
    pair = f'<div class="pair after">{"".join(cards)}</div>'
    return _section("Training", lead, _table(head, body) + pair) if body else ""


def _bits(value: float, error: float, is_bound: bool) -> str:
    return f"&le; {value:.3f} <small>±{error:.3f}</small>" if is_bound else f"{value:.3f}"


def _likelihood(found: Results) -> str:
    """Bits per byte of the test rows."""
    body = []
    for entry in found["likelihood"]:
        tested = entry["against_baseline"]
        span = f"<small>{entry['low']:.3f} to {entry['high']:.3f}</small>"
        badge = _badge(_word(found, tested)) if tested else ""
        value = _bits(entry["value"], entry["error"], entry["is_bound"])
        body.append(("", [_spot(found, entry["family"]), value, span, badge]))
    if ngram := found["floors"]["ngram"]:
        body.append(("floor", [f"{ngram['order']}-gram model of bytes", f"{ngram['bits_per_byte']:.3f}", "", ""]))
    given = "Given the input, which the n-gram model does not see. " if found["data"]["paired"] else ""
    lead = f"Lower is better. {given}For diffusion models an upper bound, with its sampling error."
    table = _table(["", "bits per byte", "95 %", "verdict"], body)
    return (
        f'<div class="card"><h3>Likelihood of the test rows</h3><p class="lead">{lead}</p>{table}</div>' if body else ""
    )


def _method(found: Results) -> str:
    """What an engineer needs to check the numbers or to get them again."""
    study, plan, machine, data = found["study"], found["plan"], found["machine"], found["data"]
    rows = ", ".join(f"{count:,} {name}" for name, count in data["rows"].items())
    tried = {"dropout": " or ".join(f"{rate:g}" for rate in study["dropouts"])} if study["dropouts"] else {}
    table = {**plan["train"], **tried}
    gpu = f"{machine['gpu']}, " if machine.get("gpu") else ""
    facts = {
        "task": f"{found['task']['name']}: {found['task']['reason']}",
        "metric of the verdict": f"{primary(found)}, margin ±{found['task']['margin']:g}",
        "data": f"{data['source']} ({rows} rows), hash {data['sha']}",
        "network": f"preset {plan['preset'] or 'of the checkpoints'}, vocabulary {plan['vocab_size']:,}",
        "checkpoints": ", ".join(f"{family}: {path}" for family, path in study["bases"].items()),
        "training": ", ".join(f"{key} {value}" for key, value in table.items()),
        "seeds": ", ".join(str(study["seed"] + i) for i in range(study["seeds"])),
        "decoding": f"at most {plan['new_tokens']} new tokens; chosen on {data['validation_items']} validation items",
        "machine": f"{gpu}{machine.get('cpu', '')}, {machine.get('cores')} cores, {machine.get('threads')} threads, "
        f"matrix product {machine.get('matmul_gflops') or 0:,.0f} GFLOP/s when the report was written",
        "software": f"redraft {found['redraft']}, torch {machine.get('torch')}, Python {machine.get('python')}",
    }
    command = f"<pre><code>{escape(found['command'])}</code></pre>" if found["command"] else ""
    missing = [escape(f"{m['what']}: {m['why']}") for m in found["missing"]]
    words = _facts(_WORDS)
    return (
        f"<h2>How this was measured</h2>{command}{_facts({k: v for k, v in facts.items() if v})}"
        + (f'<h3 class="after">Missing</h3>{_list(missing, "notes")}' if missing else "")
        + f"<details><summary>What the words mean</summary>{words}</details>"
        + "<footer>All numbers are in <code>results.json</code> beside this file.</footer>"
    )


# ---- pieces


def _section(title: str, lead: str, content: str) -> str:
    return f'<h2>{title}</h2><p class="lead">{escape(lead)}</p>{content}' if content else ""


def _table(head: Sequence[str], body: Sequence[tuple[str, Sequence[str]]]) -> str:
    """``head`` is escaped here, cells are HTML; the first of a pair in ``body`` is the row's class."""
    top = "".join(f"<th>{escape(name).replace(chr(10), '<br>')}</th>" for name in head)
    rows = "".join(f'<tr class="{kind}">{"".join(f"<td>{c}</td>" for c in cells)}</tr>' for kind, cells in body)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>'


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in facts.items())
    return f'<div class="scroll"><table class="facts"><tbody>{rows}</tbody></table></div>'


def _list(items: Any, kind: str = "") -> str:
    listed = "".join(f"<li>{item}</li>" for item in items)
    return f'<ul class="{kind}">{listed}</ul>' if listed else ""


def _bold_head(text: str) -> str:
    head, colon, rest = text.partition(": ")
    return f"<b>{escape(head)}</b>{colon}{escape(rest)}"


def _kind(found: Results, row: Row) -> str:
    return "first" if row["id"] == found["baseline"]["setting"] else ""


def _name(found: Results, row: Row) -> str:
    tags = ["baseline"] if _kind(found, row) else row["chosen"]
    picks = "".join(f'<span class="pick">{tag}</span>' for tag in tags)
    return _spot(found, row["family"], row["label"]) + picks


def _spot(found: Results, family: str, text: str = "") -> str:
    return f'<span class="spot k{colour(found, family)}"></span>{escape(text or family)}'


def _word(found: Results, tested: Row) -> str:
    """The verdict of one test; of none in a void study."""
    return "void" if found["verdict"]["void"] else str(tested["verdict"])


def _badge(word: str) -> str:
    return f'<span class="badge {escape(word)}">{escape(word)}</span>'
