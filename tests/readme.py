"""The parts of README.md that are made from the code.

    python -m tests.readme    writes them into README.md; a test holds them to it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

from onnxprune.rules import load_rules
from tests.test_house import LAYERS

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"


def operators() -> str:
    """One row for operators that are treated alike."""
    rows: dict[tuple[str, str], dict[str, None]] = {}
    for rule in load_rules():
        if rule.flow is not None:
            name = f"{rule.domain}.{rule.op}" if rule.domain else rule.op
            rows.setdefault((rule.family, rule.note), {})[name] = None
    lines = ["| operators | what is followed |", "|---|---|"]
    for (_, note), names in sorted(rows.items(), key=lambda row: (row[0][0], min(row[1]))):
        lines.append(f"| {', '.join(sorted(names))} | {note} |")
    return "\n".join(lines)


def modules() -> str:
    """One line a module, by package, in the order of the layers."""
    lines, before = ["| module | what lives there |", "|---|---|"], ""
    for line in LAYERS:
        package, _, names = line.rpartition(":")
        if package and package != before:
            folder = ROOT / ("passes" if package == "passes" else f"onnxprune/{package}")
            lines.append(f"| **{package}/** | {_said(folder / '__init__.py')} |")
        for name in names.split():
            path = ROOT / "onnxprune" / package / f"{name}.py"
            lines.append(f"| `{f'{package}/' if package else ''}{name}` | {_said(path)} |")
        before = package
    return "\n".join(lines)


def _said(path: Path) -> str:
    """The first paragraph of a file's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


PARTS: dict[str, Callable[[], str]] = {"operators": operators, "modules": modules}


def part(text: str, name: str) -> str:
    """What stands between the markers of a part."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.S)
    assert found is not None, f"README.md has no part `{name}`"
    return found.group(1).strip()


def write() -> None:
    """Put every part into README.md."""
    text = README.read_text(encoding="utf-8")
    for name, make in PARTS.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        head, _, rest = text.partition(start)
        tail = rest.partition(end)[2]
        text = f"{head}{start}{make()}\n{end}{tail}"
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
