"""Views of LSTMs and GRUs give what the cells compute, whatever their options."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import ModelProto

from onnxprune.backend.runtime import session
from onnxprune.identity.dims import Dims
from onnxprune.identity.ties import Ties
from onnxprune.model.graph import Model
from onnxprune.readers.find import find_views
from onnxprune.readers.frontier import Batch, Walk, held, sample
from onnxprune.readers.recurrent import RecurrentView
from onnxprune.readers.view import Changes
from onnxprune.shape.sizes import choose
from tests.builder import Builder
from tests.nets import run

Array = npt.NDArray[Any]
STEPS, SAMPLES, INPUTS, UNITS = 7, 3, 5, 4
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
CELLS = [
    ("LSTM", {}),
    ("RNN", {}),
    ("GRU", {"linear_before_reset": 0}),
    ("GRU", {"linear_before_reset": 1}),
]
DIRECTIONS = ("forward", "reverse", "bidirectional")


def cell(
    op: str, direction: str = "forward", *, bias: bool = True, state: str = "", units: int = UNITS,
    outputs: tuple[int, ...] = (0, 1), lengths: list[int] | None = None, **more: Any,
) -> ModelProto:  # fmt: skip
    """One cell that is given (steps, samples, inputs); `state`: where its first one comes from."""
    b = Builder(3)
    d, rows = 1 + (direction == "bidirectional"), GATES[op] * units
    weights = [b.weight(d, rows, INPUTS), b.weight(d, rows, units)]
    weights.append(b.weight(d, 2 * rows) if bias else "")
    weights.append("" if lengths is None else b.add(lengths, np.int32))
    if state:
        first = b.rng.standard_normal((d, 1, units)) * np.ones((d, SAMPLES, units))
        weights.append("first" if state == "given" else b.add(first))
    y = b.node(op, "x", *weights, hidden_size=units, direction=direction, outputs=2, **more)
    names = [y, f"{y}_1"]
    for slot in {0, 1} - {*outputs}:
        b.nodes[-1].output[slot] = ""
    inputs: dict[str, list[int | str]] = {"x": [STEPS, SAMPLES, INPUTS]}
    if state == "given":
        inputs["first"] = [d, SAMPLES, units]
    shapes: list[list[int | str]] = [[STEPS, d, SAMPLES, units], [d, SAMPLES, units]]
    return b.model(inputs, {names[i]: shapes[i] for i in outputs})


def views_of(model: ModelProto) -> dict[str, RecurrentView]:
    """Its views by label."""
    made = Model(model)
    found = find_views(made, choose(made, {})[1], Ties())
    views = [v for v in found.values() if isinstance(v, RecurrentView)]
    assert len(views) == len(found)
    return {v.label: v for v in views}


def feeds(seed: int = 0, directions: int = 1) -> dict[str, Array]:
    """Input, and first states."""
    rng = np.random.default_rng(seed)
    shapes = {"x": (STEPS, SAMPLES, INPUTS), "first": (directions, SAMPLES, UNITS)}
    return {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


def by_step(rows: Array) -> Array:
    """Positions are counted sample by sample. Returns: shape (steps, samples, ...)."""
    found: Array = rows.reshape(SAMPLES, STEPS, -1).swapaxes(0, 1)
    return found


def sigmoid(a: Array) -> Array:
    """As the specification has it."""
    found: Array = 1 / (1 + np.exp(-a))
    return found


def states(sums: dict[str, Array], before: Array, *, is_reverse: bool, after: bool) -> Array:
    """Y of one direction from its sums, each of shape (steps, samples, rows)."""
    if "" in sums and sums[""].shape == before.shape:
        return np.tanh(sums[""])
    if "" in sums:
        i, o, f, c = np.split(sums[""], 4, axis=-1)
        memory, found = np.zeros_like(c[0]), np.zeros_like(c)
        for t in reversed(range(STEPS)) if is_reverse else range(STEPS):
            memory = sigmoid(f[t]) * memory + sigmoid(i[t]) * np.tanh(c[t])
            found[t] = sigmoid(o[t]) * np.tanh(memory)
        return found
    z, r = np.split(sigmoid(sums["gates"]), 2, axis=-1)
    inner = sums["candidate of x"] + r * sums["candidate of h"] if after else sums["candidate"]
    found = (1 - z) * np.tanh(inner) + z * before
    return found


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("op", "more"), CELLS)
@pytest.mark.parametrize(
    "given", [{}, {"bias": False}, {"state": "given"}, {"state": "stored"}], ids=str
)
def test_sums_tell_every_state(
    op: str, more: dict[str, int], direction: str, given: dict[str, Any]
) -> None:
    """The cell's own arithmetic on what the views give is what the runtime computes."""
    model = cell(op, direction, **given, **more)
    known = feeds(directions=1 + (direction == "bidirectional"))
    own = {i.name: known[i.name] for i in model.graph.input}
    y = session(model).run(own)[0]
    views = views_of(model)
    values = {**own, "v0": y}
    every = np.arange(STEPS * SAMPLES)
    for number, way in enumerate(["forward", "reverse"] if y.shape[1] == 2 else [direction]):
        of = {k.removeprefix(way).strip(): v for k, v in views.items() if k.startswith(way)}
        assert all(v.count(values) == len(every) for v in of.values())
        sums = {k: by_step(v.outputs(values, every)) for k, v in of.items()}
        before = by_step(next(iter(of.values())).cell.h(values, every))
        made = states(sums, before, is_reverse=way == "reverse",
                      after=bool(more.get("linear_before_reset")))  # fmt: skip
        np.testing.assert_allclose(made, y[:, number], atol=2e-6)


@pytest.mark.parametrize(("op", "more"), CELLS)
def test_one_sample_sees_what_it_sees_among_others(op: str, more: dict[str, int]) -> None:
    """The batch is not the first axis; no sample has positions of another."""
    model = cell(op, state="given", **more)
    own = feeds()
    values = {**own, "v0": session(model).run(own)[0]}
    for view in views_of(model).values():
        assert held(values, view.seen[0], SAMPLES, view.axes) == 1
        for at in range(SAMPLES):
            one = sample(values, view.seen, at, SAMPLES, view.axes)
            among = view.outputs(values, at * STEPS + np.arange(STEPS))  # as many: rounds alike
            np.testing.assert_allclose(view.outputs(one, np.arange(STEPS)), among)


def test_a_cell_with_the_batch_first_is_the_same_cell() -> None:
    """Only the axes of what it reads and gives lie elsewhere."""
    plain, first = cell("GRU", state="given"), cell("GRU", state="given", layout=1)
    own = feeds()
    values = {**own, "v0": session(plain).run(own)[0]}
    moved = {
        "x": values["x"].transpose(1, 0, 2),
        "first": values["first"].transpose(1, 0, 2),
        "v0": values["v0"].transpose(2, 0, 1, 3),
    }
    every = np.arange(STEPS * SAMPLES)
    for ours, theirs in zip(views_of(plain).values(), views_of(first).values(), strict=True):
        np.testing.assert_allclose(theirs.outputs(moved, every), ours.outputs(values, every))
        assert set(theirs.axes.values()) == {0}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("op", "more"), CELLS)
def test_what_is_written_is_what_is_read(op: str, more: dict[str, int], bias: bool) -> None:
    """Twice, the second time over the first; a cell without a bias gets one."""
    model = cell(op, "bidirectional", bias=bias, **more)
    rng, views = np.random.default_rng(1), views_of(model)
    changes, wanted = Changes(Model(model)), {}
    for _ in range(2):
        for key, view in views.items():
            made = [rng.standard_normal(a.shape) for a in (view.weights, view.bias)]
            view.write(changes, *made)
            wanted[key] = made
    after = changes.apply()
    found = views_of(after.proto)
    for key, (weights, numbers) in wanted.items():
        np.testing.assert_allclose(found[key].weights, weights, rtol=1e-6)
        np.testing.assert_allclose(found[key].bias, numbers, rtol=1e-5, atol=1e-6)
    session(after.proto).run({"x": feeds()["x"]})


def test_rows_and_columns_are_those_of_the_weights() -> None:
    """Both directions count their own units; gates of a unit are one channel, and its column."""
    model = cell("LSTM", "bidirectional")
    b = Builder(0)
    b.nodes, b.weights = [*model.graph.node], [*model.graph.initializer]
    flat = b.node("Reshape", b.node("Transpose", "v0", perm=[0, 2, 1, 3]), b.ints(0, 0, -1))
    y = b.node("MatMul", flat, b.weight(2 * UNITS, 2))
    state = run(b.model({"x": [STEPS, SAMPLES, INPUTS]}, {y: [STEPS, SAMPLES, 2]}))
    dims = state[Dims]
    found = find_views(state.model, state.subject.shapes[0], dims.ties)
    forward, reverse = (v for v in found.values() if isinstance(v, RecurrentView))
    of = [dims.of[v.rows].reshape(4, UNITS) for v in (forward, reverse)]
    for view, rows in zip((forward, reverse), of, strict=True):
        assert (rows == rows[0]).all()
        assert (dims.of[view.columns[INPUTS:]] == rows[0]).all()
    assert not np.intersect1d(*of).size


@pytest.mark.parametrize(
    "model",
    [
        cell("LSTM", lengths=[STEPS, 2, STEPS]),
        cell("GRU", activations=["HardSigmoid", "Tanh"]),
    ],
    ids=["lengths", "activations"],
)
def test_some_cells_are_left_alone(model: ModelProto) -> None:
    """Sequences that end early, and a reset gate that is not the usual one."""
    assert not views_of(model)


def test_full_lengths_tell_nothing() -> None:
    """Stored lengths that are all those of the input."""
    assert views_of(cell("LSTM", lengths=[STEPS] * SAMPLES))


def test_states_of_all_steps_can_be_asked_for() -> None:
    """A node that hands out its last state only is asked for the others by a walk."""
    model = Model(cell("LSTM", outputs=(1,)))
    [view] = views_of(model.proto).values()
    own = {"x": feeds()["x"]}
    walk = Walk([Batch(own, np.arange(SAMPLES), 0)], [{*view.seen}])
    [values] = walk.step(model, view.seen)
    walk.shelf.close()
    whole = session(cell("LSTM")).run(own)[0]
    np.testing.assert_allclose(values[view.seen[1]], whole, atol=1e-6)


def test_a_value_without_samples_of_its_own_goes_to_the_first() -> None:
    """What seven steps of three samples hold cannot be told apart: it counts three times."""
    values = {"v": np.zeros((STEPS, 2), np.float32)}
    assert [len(sample(values, ["v"], at, SAMPLES, {})["v"]) for at in range(3)] == [STEPS, 0, 0]
    assert held(values, "v", SAMPLES, {}) == SAMPLES
