"""A finished run as text for a terminal; everything is read from the JSON document."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

# A pipe has no width of its own; tables must not be folded into it.
PIPE_WIDTH = 160
MOST_ROWS = 60
MOST_FEATURES = 20


def render(content: dict[str, Any]) -> str:
    """The text of a document, by its schema."""
    command = content["schema"].split("/")[1]
    parts = list(_SECTIONS[command](content))
    is_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if is_terminal else PIPE_WIDTH
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=width, highlight=False)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A line on standard error that names what is at work."""
    console = Console(stderr=True)
    with console.status("loading") as status:
        yield lambda name: status.update(name)


_WORDS = ("", "dim", "input", "pass", "operator", "why", "options", "what", "status")


def _table(*columns: str, title: str = "") -> Table:
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for name in columns:
        is_number = name not in _WORDS
        justify: Literal["left", "right"] = "right" if is_number else "left"
        is_name = name in ("dim", "status", "what")
        table.add_column(name, justify=justify, overflow="fold", no_wrap=is_name)
    return table


def _prune(content: dict[str, Any]) -> Iterator[RenderableType]:
    yield _cost(content["cost"])
    dims = content["dims"]
    line = f"{dims['cut']} of {dims['total']} Dims cut, {dims['pinned']} pinned"
    yield Text(f"\n{line}; {content['prunable_params']:.1%} of the weights can be pruned")
    if content.get("plans"):
        tried = sorted(content["plans"].items(), key=lambda item: item[1])
        taken = content.get("plan_taken")
        listed = ", ".join(
            f"{name} {error:.3g}" + " (taken)" * (name == taken) for name, error in tried
        )
        yield Text(f"plans compared, by what outputs lose: {listed}")
    if content.get("repaired"):
        listed = ", ".join(f"{n} {kind}" for kind, n in content["repaired"].items())
        yield Text(f"layers repaired: {listed}")
    yield from _calibration(content.get("calibration"))
    rows = [row for row in content.get("widths", []) if row["kept"] < row["of"]]
    if rows:
        yield Text()
        yield _widths(rows)
    if content["path"]:
        yield from _path(content["path"], content["path_on"])
    if content.get("verify"):
        yield Text()
        yield from _findings(content["verify"])
    yield from _warnings(content)
    if content["output"]:
        yield Text(f"\nwritten to {content['output']}" + _plan_note(content))


def _calibration(found: dict[str, Any] | None) -> Iterator[RenderableType]:
    """What the samples were, where they were not the user's."""
    if found and found["source"] != "data":
        yield Text(f"{found['samples']} {found['source']} stood in for data, to plan and to repair "
                   "on; nothing was fitted to real ones")  # fmt: skip


def _path(rows: list[dict[str, Any]], on: dict[str, Any]) -> Iterator[RenderableType]:
    yield Text(f"\nbudgets tried, each from the original: {on['metric']} of {on['before']:.4f} may "
               f"drop by {on['max_drop']:g} (on {on['samples']} samples to decide on)")  # fmt: skip
    table = _table(*rows[0]["cost"], on["metric"], "drop", "status")
    for row in rows:
        shares = [f"{share:.3f}" for share in row["cost"].values()]
        status = "chosen" if row["chosen"] else "holds" if row["holds"] else "too much"
        table.add_row(*shares, f"{row['metric']:.4f}", f"{row['drop']:.4f}", status)
    yield table


def _plan_note(content: dict[str, Any]) -> str:
    return f", plan in {content['plan']}" if content.get("plan") else ""


def _cost(cost: dict[str, dict[str, float]]) -> Table:
    table = _table("", "before", "after", "ratio")
    for name, row in cost.items():
        table.add_row(name, count(row["before"]), count(row["after"]), f"{row['ratio']:.3f}")
    return table


def _widths(rows: Sequence[dict[str, Any]]) -> Table:
    table = _table("dim", "kept", "of", "")
    for row in rows[:MOST_ROWS]:
        notes = [] if row["exact"] else ["approximate"]
        notes += [f"{row['rows']} rows of {row['size']}"] if row["rows"] > 1 else []
        note = ", ".join(notes)
        table.add_row(row["name"], str(row["kept"]), str(row["of"]), note)
    if len(rows) > MOST_ROWS:
        table.add_row(f"... and {len(rows) - MOST_ROWS} more", "", "", "")
    return table


def count(value: float) -> str:
    """A number with a unit prefix: 1.50 M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.2f} {unit}"
    return f"{value:g}"


def _sensitivity(content: dict[str, Any]) -> Iterator[RenderableType]:
    rows = content["dims"]
    yield Text("what is lost with each Dim, after repair, relative to the variance of what is lost "
               "from; the cheapest for its MACs first")  # fmt: skip
    widths = [f"at {one['width']:.0%}" for one in rows[0]["damage"]] if rows else []
    table = _table("dim", "size", "rows", "MACs", *widths, "for its MACs")
    for row in rows[:MOST_ROWS]:
        damage = [f"{one['damage']:.2g}" for one in row["damage"]]
        sizes = str(row["size"]), str(row["rows"]), f"{row['macs_share']:.1%}"
        table.add_row(row["name"], *sizes, *damage, f"{row['damage_per_macs']:.2g}")
    yield table
    if len(rows) > MOST_ROWS:
        yield Text(f"... and {len(rows) - MOST_ROWS} more, all of them in --json")
    if content["unmeasured"]:
        yield Text(f"\n{len(content['unmeasured'])} Dims that may be cut have no reader that "
                   "damage can be measured on; their scores stand in for it")  # fmt: skip
    yield from _warnings(content)
    if content["output"]:
        yield Text(f"\nwritten to {content['output']}")


def _inspect(content: dict[str, Any]) -> Iterator[RenderableType]:
    cost = content["cost"]
    sizes = ", ".join(
        f"{name} {'x'.join(map(str, shape)) or 'scalar'}"
        for name, shape in content["shapes"].items()
    )
    yield Text(f"{count(cost['macs'])} MACs (at {sizes}), {count(cost['params'])} parameters, "
               f"{count(cost['bytes'])}B")  # fmt: skip
    yield Text(f"{content['prunable_params']:.1%} of the weights can be pruned\n")
    table = _table("dim", "size", "rows", "MACs", "params", "status", "why")
    for row in sorted(content["dims"], key=lambda row: row["pinned"] is not None):
        status = "pinned" if row["pinned"] else "exact" if row["exact"] else "approximate"
        why = row["pinned"] or row["approximate"] or ""
        shares = f"{row['macs_share']:.1%}", f"{row['params_share']:.1%}"
        table.add_row(row["name"], str(row["size"]), str(row["rows"]), *shares, status, why)
    yield table
    yield Text("\nshares are of the nodes and weights that a Dim has to do with; one with several "
               "Dims counts for each")  # fmt: skip
    if content["unknown_operators"]:
        listed = ", ".join(f"{n} ({k})" for n, k in content["unknown_operators"].items())
        yield Text(f"\noperators without a rule: {listed}")
    if content["refused"]:
        yield Text(f"\nnothing can be cut: {content['refused']}")
    if content["features"]:
        yield from _features(content["features"], content["features_on"])
    yield from _warnings(content)


def _features(rows: list[dict[str, Any]], on: dict[str, Any]) -> Iterator[RenderableType]:
    shown = [row for row in rows if row["changes"]]
    yield Text(f"\nwhat the outputs owe each feature: shuffled {on['permutations']} times among "
               f"{on['samples']} samples")  # fmt: skip
    drop = [f"drop of {on['metric']}"] if on["metric"] else []
    table = _table("input", "feature", "importance", "se", "share", *drop)
    for row in shown[:MOST_FEATURES]:
        figures = [_figure(row["importance"], ".4g"), _figure(row["se"], ".2g"),
                   _figure(row["share"], ".1%")]  # fmt: skip
        figures += [_figure(row["drop"], ".4f")] if drop else []
        table.add_row(row["input"], str(row["feature"]), *figures)
    yield table
    if len(shown) > MOST_FEATURES:
        yield Text(f"... and {len(shown) - MOST_FEATURES} more, all of them in --json")
    idle = [row for row in rows if row["varies"] and not row["changes"]]
    yield from _named(idle, "change no output at all")
    yield from _named([row for row in rows if not row["varies"]],
                      "have one value in all samples, which tell nothing of them")  # fmt: skip


def _named(rows: list[dict[str, Any]], what: str) -> Iterator[RenderableType]:
    if rows:
        listed = ", ".join(f"{row['input']}[{row['feature']}]" for row in rows[:MOST_FEATURES])
        more = ", ..." if len(rows) > MOST_FEATURES else ""
        yield Text(f"{len(rows)} of the features {what}: {listed}{more}")


def _figure(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)


def _findings(levels: dict[str, Any]) -> Iterator[RenderableType]:
    table = _table("what", "status", "")
    table.columns[2].justify = "left"
    for name, found in levels.items():
        for line in _LINES.get(name, _plain)(found):
            table.add_row(name, *line)
    yield table


Line = tuple[str, str]


def _status(found: dict[str, Any]) -> str:
    if "skipped" in found:
        return "skipped"
    return {True: "passed", False: "failed"}.get(found.get("passed"), "")  # type: ignore[arg-type]


def _plain(found: dict[str, Any]) -> Iterator[Line]:
    status = _status(found)
    if status == "skipped":
        yield status, str(found["skipped"])
    elif found.get("failures"):
        for failure in found["failures"]:
            yield status, str(failure)
    else:
        yield status, ""


def _outputs(found: dict[str, Any]) -> Iterator[Line]:
    if "skipped" in found or found.get("failures"):
        yield from _plain(found)
        return
    for row in found["outputs"]:
        agree = row.get("agreement")
        same = f", {agree:.1%} of decisions the same" if agree is not None else ""
        error = row.get("error_mean")
        off = f"off by {error:.2g} of its size on average" if error is not None else "compared"
        samples = f"on {found['samples']} samples of {found['inputs']}"
        yield "compared", f"`{row['name']}` {off}{same} ({samples})"


def _metric(found: dict[str, Any]) -> Iterator[Line]:
    if "skipped" in found:
        yield from _plain(found)
        return
    interval = found.get("interval")
    spread = f" (after: {interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
    yield "", f"{found['name']} {found['before']:.4f} -> {found['after']:.4f}{spread}"


def _latency(found: dict[str, Any]) -> Iterator[Line]:
    if "skipped" in found:
        yield from _plain(found)
        return
    low, high = found["interval"]
    times = f"{found['reference']['p50_ms']:.3f} ms -> {found['candidate']['p50_ms']:.3f} ms"
    ratio = f"{found['speedup']:.3f} times as fast ({low:.3f} to {high:.3f})"
    yield "", f"{times}, {ratio}{_claim(found)}"


def _claim(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    if found["speedup_claimed"] or high < 1:
        return ""
    if low <= 1:
        return ": no difference shown"
    return ": too few pairs to claim it, raise --latency-seconds"


_LINES: dict[str, Callable[[dict[str, Any]], Iterator[Line]]] = {
    "outputs": _outputs,
    "metric": _metric,
    "latency": _latency,
}


def _verify(content: dict[str, Any]) -> Iterator[RenderableType]:
    yield from _findings(content["verify"])
    if content["gates"]:
        yield Text()
        table = _table("what", "limit", "value", "status")
        for gate in content["gates"]:
            value = "not measured" if gate["value"] is None else f"{gate['value']:.4g}"
            passed = "passed" if gate["passed"] else "failed"
            table.add_row(gate["name"], f"{gate['limit']:g}", value, passed)
        yield table
    yield from _warnings(content)


def _normalize(content: dict[str, Any]) -> Iterator[RenderableType]:
    nodes = content["nodes"]
    yield Text(f"{nodes['before']} nodes became {nodes['after']}")
    if content["output"]:
        yield Text(f"written to {content['output']}")


def _apply(content: dict[str, Any]) -> Iterator[RenderableType]:
    if "cost" in content:
        yield _cost(content["cost"])
    else:
        yield Text(f"{len(content['tensors'])} tensors cut")
    yield from _warnings(content)
    if content["output"]:
        yield Text(f"written to {content['output']}")


def _passes(content: dict[str, Any]) -> Iterator[RenderableType]:
    table = _table("pass", "what", "options")
    for row in content["passes"]:
        options = ", ".join(f"{o['name']}={o['default']}" for o in row["options"])
        table.add_row(row["name"], row["what"], options)
    yield table


def _ops(content: dict[str, Any]) -> Iterator[RenderableType]:
    table = _table("operator", "what")
    for row in content["operators"]:
        domain = f"{row['domain']}." if row["domain"] else ""
        table.add_row(domain + row["name"], row["what"])
    yield table


def _warnings(content: dict[str, Any]) -> Iterator[RenderableType]:
    for warning in content.get("warnings", []):
        yield Text(f"warning: {warning}")


_SECTIONS: dict[str, Callable[[dict[str, Any]], Iterator[RenderableType]]] = {
    "prune": _prune,
    "sensitivity": _sensitivity,
    "inspect": _inspect,
    "verify": _verify,
    "normalize": _normalize,
    "apply": _apply,
    "passes": _passes,
    "ops": _ops,
}
