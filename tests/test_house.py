"""What a machine can check of the house style."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import onnxprune

ROOT = Path(__file__).resolve().parent.parent
# In order: a module imports from those before it. A name before a colon is a package; the
# modules of one without a list may import each other.
LAYERS = """errors
model: store graph checks wire surgeon storage digest
backend: feeds threads runtime child
normal: floats origin draft fold normalize
shape: kernels contrib shapes valid sizes
identity: fields ties flow combine balance channels dims occurrences
rules:
planning: weights scores terms lengths cost damage plan rounds refusal planner allocate
cutting: compact assemble cut proof oracle
records: untrusted planrecord planfile curvefile tensorfile checkpoint
cleanup: known codes weight
cleanup: linear knowledge deduce_moves deduce liveness cleaning branches duplicates
samples: images dataset columns data metrics standins
manager
verification: compare latency trials outputs sensitivity gates
readers: stats window frontier view narrow recurrent stream find folds
damage: pooling sums ahead outputs bases obs norms streams trail follow directions
damage: curves activations
repair: copies solve turned rotated targets sweep choose
passes:
recipe
search
progress
report:
blame opening pruning api arguments cli __main__""".splitlines()
PACKAGES = [line.partition(":")[0] for line in LAYERS if line.endswith(":")]
DOORS = {"onnxruntime": "runtime", "onnx_graphsurgeon": "surgeon"}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
HELP_SECONDS = 0.3


def _files(*folders: str) -> list[Path]:
    """Python files below folders of the repository; the symlink to `passes` is not followed."""
    found = [path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(path for path in found if path.parts[:2] != ("onnxprune", "passes"))


SOURCES = _files("onnxprune", "passes")
# tests/bench and models hold scripts for environments of their own.
TESTS = [path for path in _files("tests") if path.parts[1] != "bench"]
# What opens a package holds its docstring only, but for `rules`, which loads its families.
ENGINE = [path for path in SOURCES if path.name != "__init__.py" or path.parts[-2] == "rules"]


def order() -> list[str]:
    """Every layer: modules as `package.module`, packages whose modules are one layer."""
    found: list[str] = []
    for line in LAYERS:
        package, colon, modules = line.rpartition(":")
        found += [f"{package}.{m}" if colon else m for m in modules.split()] or [package]
    return found


def layer(path: Path) -> str:
    """The layer a file belongs to."""
    parts = path.with_suffix("").parts
    inside = parts if parts[0] == "passes" else parts[1:]
    return inside[0] if inside[0] in PACKAGES else ".".join(inside)


def reached(name: str) -> str:
    """The layer that an import of `onnxprune...` reaches."""
    parts = name.split(".")[1:]
    is_flat = parts[0] in PACKAGES or len(parts) == 1
    return parts[0] if is_flat else ".".join(parts[:2])


def imports(path: Path) -> Iterator[str]:
    """Full names of everything a file imports, at its top or inside functions."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            named = [f"{module}.{alias.name}" for alias in node.names]
            is_package = (ROOT / module.replace(".", "/") / "__init__.py").is_file()
            is_open = module.startswith("onnxprune") and is_package
            yield from (named if is_open else [module])


@pytest.mark.parametrize("path", ENGINE, ids=str)
def test_imports_point_down(path: Path) -> None:
    """A module imports only from layers before its own."""
    own, layers = layer(path), order()
    assert own in layers, "give the new module its place in LAYERS"
    below = layers[: layers.index(own) + (own in PACKAGES)]
    for name in imports(path):
        assert name.split(".")[0] != "passes", "import `onnxprune.passes`"
        if name.startswith("onnxprune.") and name != "onnxprune.__version__":
            assert reached(name) in below, name


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_each_heavy_library_has_one_door(path: Path) -> None:
    """ONNX Runtime is imported by `runtime` alone, graphsurgeon by `surgeon` alone."""
    for name in imports(path):
        door = DOORS.get(name.split(".")[0])
        assert door in (None, path.stem), f"`{name}` belongs to {door}.py"


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=str)
def test_files_and_functions_stay_short(path: Path) -> None:
    """A file or function beyond the limit holds two ideas."""
    text = (ROOT / path).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    long = [
        f"{node.name}: {(node.end_lineno or 0) - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert not long


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=str)
def test_every_module_says_what_it_is(path: Path) -> None:
    """A docstring opens each file."""
    assert ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", TESTS, ids=str)
def test_every_test_states_its_claim(path: Path) -> None:
    """A test without a docstring says only what it does, not what holds."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    silent = [f.name for f in functions if f.name.startswith("test_") and not ast.get_docstring(f)]
    assert not silent


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_ruff_finds_nothing() -> None:
    """The rules that pyproject.toml selects hold everywhere."""
    done = _run("-m", "ruff", "check", ".")
    assert done.returncode == 0, done.stdout + done.stderr


def test_mypy_finds_nothing() -> None:
    """Both packages are typed strictly."""
    done = _run("-m", "mypy", "--strict", "onnxprune")
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_the_package_loads_nothing_heavy() -> None:
    """Its functions are there, and come when they are used."""
    code = "import sys, onnxprune; sys.exit('numpy' in sys.modules or 'onnx' in sys.modules)"
    assert _run("-c", code).returncode == 0
    assert set(onnxprune.__all__) <= set(dir(onnxprune))
    with pytest.raises(AttributeError, match="no attribute `prun`"):
        onnxprune.prun  # noqa: B018


@pytest.mark.parametrize("name", onnxprune.__all__)
def test_the_package_offers_the_api(name: str) -> None:
    """Each public name is the one of `onnxprune.api`."""
    from onnxprune import api, errors

    home = errors if name == "PruneError" else api
    assert getattr(onnxprune, name) is getattr(home, name)


def test_help_is_quick_and_does_not_load_numpy() -> None:
    """Processor time, start of Python included; the best of three, for machines under load."""
    code = (
        "import sys, time\n"
        "sys.argv = ['onnxprune', '--help']\n"
        "from onnxprune.cli import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as ended:\n"
        "    assert not ended.code, ended.code\n"
        "assert 'numpy' not in sys.modules\n"
        "print('\\n' + str(time.process_time()))\n"
    )
    done = [_run("-c", code) for _ in range(3)]
    assert all(one.returncode == 0 for one in done), done[0].stderr
    assert min(float(one.stdout.splitlines()[-1]) for one in done) < HELP_SECONDS


def test_every_package_is_shipped() -> None:
    """Setuptools ships what pyproject.toml lists; the symlink serves the other tools."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {path.parent for path in SOURCES if path.name == "__init__.py"}
    found = {".".join(folder.parts) for folder in folders} - {"passes"} | {"onnxprune.passes"}
    assert set(settings["tool"]["setuptools"]["packages"]) == found
    assert (ROOT / "onnxprune" / "passes").resolve() == ROOT / "passes"
