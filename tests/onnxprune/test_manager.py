"""Passes: order, facts, specs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from onnxprune.errors import UsageError
from onnxprune.identity.dims import Dims
from onnxprune.manager import (
    Analysis,
    PassManager,
    Rewrite,
    Rewritten,
    State,
    Subject,
    Verification,
    installed,
    make_pass,
    spec,
)
from onnxprune.passes.find_dims import FindDims
from onnxprune.passes.score_l1 import ScoreL1
from onnxprune.planning.scores import Scores
from tests.nets import state_of, two_layers

NET = two_layers(np.ones((2, 3)), np.ones((3, 2)))


@dataclass(frozen=True)
class Number:
    """A fact."""

    of: int


@dataclass(frozen=True)
class Count(Analysis):
    """Gives a number."""

    name: ClassVar[str] = "count"
    gives: ClassVar[type] = Number
    start: int = 1
    share: float = 0.5
    loud: bool = False
    word: str = "a"

    def run(self, state: State) -> Number:
        return Number(self.start)


@dataclass(frozen=True)
class Renew(Rewrite):
    """Returns a model that is equal, and a fact about it."""

    name: ClassVar[str] = "renew"
    needs: ClassVar[tuple[type, ...]] = (Number,)
    gives: ClassVar[tuple[type, ...]] = (str,)

    def run(self, state: State) -> Rewritten:
        return Rewritten(type(state.model)(state.model.proto), ("made",))


@dataclass(frozen=True)
class Look(Verification):
    """Finds what it is asked for."""

    name: ClassVar[str] = "verify-look"
    needs: ClassVar[tuple[type, ...]] = (str,)

    def run(self, state: State) -> dict[str, Any]:
        return {"same": state.original.model is state.model}


def test_passes_run_in_order_over_one_state() -> None:
    """Facts, findings and seconds are kept by name; progress is told."""
    told: list[str] = []
    state = state_of(NET)
    state.progress = told.append
    findings = PassManager([Count(start=3), Renew(), Look()]).run(state)
    assert told == ["count", "renew", "verify-look"] == list(state.seconds)
    assert findings.by_level == {"look": {"same": False}}
    assert state[str] == "made"


def test_a_rewrite_drops_facts_about_the_model_before() -> None:
    """They can still be asked for as the past."""
    state = state_of(NET)
    PassManager([Count(start=3), Renew()]).run(state)
    assert state.get(Number) is None
    assert state.past(Number) == Number(3)


def test_facts_that_a_rewrite_keeps_stay() -> None:
    """Where the rewrite says that it does not touch what they are about."""

    @dataclass(frozen=True)
    class Careful(Renew):
        name: ClassVar[str] = "careful"
        keeps: ClassVar[tuple[type, ...]] = (Number,)

    state = state_of(NET)
    PassManager([Count(start=3), Careful()]).run(state)
    assert state[Number] == Number(3)


def test_what_a_pass_needs_is_checked_before_anything_runs() -> None:
    """Also what an earlier rewrite has dropped."""
    with pytest.raises(UsageError, match="pass `score-l1` needs Dims"):
        PassManager([ScoreL1(), FindDims()])
    with pytest.raises(UsageError, match="pass `renew` needs Number"):
        PassManager([Count(), Renew(), Renew()])
    PassManager([Renew()], given=[Number])


def test_every_shipped_pass_is_installed_under_its_own_name() -> None:
    """An entry point leads to the class that calls itself so."""
    found = installed()
    assert {"find-dims", "score-l1", "score-fpgm", "make-plan", "cut-channels"} <= set(found)
    for name in found:
        assert make_pass(name).name == name


@pytest.mark.parametrize(("text", "wanted"), [
    ("score-redundancy{by=cosine}", {"by": "cosine"}),
    ("make-plan{approximate,allocate=uniform}", {"approximate": True, "allocate": "uniform"}),
    ("make-plan{ multiple = 8 , approximate = false }", {"multiple": 8, "approximate": False}),
])  # fmt: skip
def test_a_spec_names_a_pass_and_its_options(text: str, wanted: dict[str, Any]) -> None:
    """Flags, numbers and words, with or without blanks."""
    made = make_pass(text)
    assert {name: getattr(made, name) for name in wanted} == wanted


def test_a_pass_says_how_to_make_it_again() -> None:
    """Options at their defaults are left out."""
    assert spec(make_pass("score-redundancy{by=cosine}")) == "score-redundancy{by=cosine}"
    assert spec(make_pass("score-redundancy")) == "score-redundancy"


@pytest.mark.parametrize(("text", "says"), [
    ("score-l3", "no pass is named `score-l3`"),
    ("score-redundancy{how=cosine}", "no option `how`"),
    ("make-plan{multiple=wide}", "not a int"),
    ("make-plan{approximate=maybe}", "not a bool"),
])  # fmt: skip
def test_a_wrong_spec_is_bad_usage(text: str, says: str) -> None:
    """The message names the part that is wrong."""
    with pytest.raises(UsageError, match=says):
        make_pass(text)


def test_a_subject_knows_its_shapes_once() -> None:
    """Sizes are chosen when they are asked for, and only then."""
    subject = Subject(state_of(NET).model)
    assert subject.known is subject.known
    assert subject.at_cost.shape["x"] == (1, 2)
    assert subject.shapes[0].shape["x"] != subject.shapes[1].shape["x"]


def test_facts_of_shipped_passes_are_found_by_type() -> None:
    """Dims and scores of one state belong together."""
    state = state_of(NET)
    PassManager([FindDims(), ScoreL1()]).run(state)
    assert state[Scores].of.shape == (state[Dims].count,)
