"""Passes, the state they work on, and the manager that checks and runs them in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from itertools import pairwise
from typing import Any, ClassVar, TypeVar, cast

from onnxprune.errors import UsageError, did_you_mean
from onnxprune.model.graph import Model
from onnxprune.planning.cost import Cost, model_cost
from onnxprune.rules import load_rules
from onnxprune.shape.shapes import Shape, Shapes
from onnxprune.shape.sizes import Sizes, choose

Fact = TypeVar("Fact")
Progress = Callable[[str], None]
GROUP = "onnxprune.passes"


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with the sizes it is looked at."""

    model: Model
    given: dict[str, Shape] = field(default_factory=dict)
    """Input shapes named by the user or the data."""

    @cached_property
    def known(self) -> tuple[Sizes, Shapes, Shapes, Shapes]:
        """Sizes, and shapes at the first, the second and the cost's sizes."""
        return choose(self.model, self.given)

    @property
    def sizes(self) -> Sizes:
        return self.known[0]

    @property
    def shapes(self) -> tuple[Shapes, Shapes]:
        return self.known[1], self.known[2]

    @property
    def at_cost(self) -> Shapes:
        return self.known[3]

    @cached_property
    def cost(self) -> Cost:
        """What the model costs as it stands, at the cost's sizes."""
        return model_cost(self.model, self.at_cost, load_rules())


@dataclass
class State:
    """What passes share: the model as loaded, the model as it is now, and facts about it."""

    original: Subject
    """As loaded."""
    subject: Subject
    """As it is now; at first the normalised original."""
    seed: int = 0
    data: Any = None
    """A `data.Dataset` that figures are measured on, or None."""
    calibration: Any = None
    """Two of them that repair may look at, to fit and to decide, or None."""
    workers: int = 0
    """Threads that passes may use side by side; results do not depend on it. 0: by the cores."""
    progress: Progress = print
    facts: dict[type, Any] = field(default_factory=dict)
    """Facts about the model as it is now, by type."""
    before: dict[type, Any] = field(default_factory=dict)
    """Facts about models that a rewrite replaced, newest by type."""
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    normal: Subject | None = None
    """The normalised original, where it is known."""
    history: list[Subject] = field(default_factory=list)
    """What rewrites replaced, oldest first."""

    @property
    def start(self) -> Subject:
        """The normalised original."""
        return self.normal or (self.history[0] if self.history else self.subject)

    @property
    def model(self) -> Model:
        return self.subject.model

    def replaced_by(self, model: Model) -> Subject:
        """What a rewrite turned into this model."""
        made = [*self.history, self.subject]
        return next(a for a, b in pairwise(made) if b.model is model)

    def __getitem__(self, kind: type[Fact]) -> Fact:
        """A fact about the model as it is now."""
        return cast(Fact, self.facts[kind])

    def get(self, kind: type[Fact]) -> Fact | None:
        """A fact if it is known."""
        return cast("Fact | None", self.facts.get(kind))

    def past(self, kind: type[Fact]) -> Fact:
        """A fact about the model before the last rewrite that dropped it."""
        found = self.past_or_none(kind)
        assert found is not None, f"no pass gave {kind.__name__}"
        return found

    def past_or_none(self, kind: type[Fact]) -> Fact | None:
        """The same, where it is known."""
        return cast("Fact | None", self.facts.get(kind, self.before.get(kind)))


@dataclass(frozen=True)
class Analysis:
    """Reads the model and returns one fact."""

    name: ClassVar[str]
    needs: ClassVar[tuple[type, ...]] = ()
    gives: ClassVar[type]

    def run(self, state: State) -> Any:
        """The fact, of type `gives`."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Rewritten:
    """A new model and facts about how it came to be."""

    model: Model
    facts: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Rewrite:
    """Returns a new model; facts about the old one are dropped unless `keeps` names them.

    The very same model means that nothing was changed: all facts stay.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[type, ...]] = ()
    keeps: ClassVar[tuple[type, ...]] = ()
    gives: ClassVar[tuple[type, ...]] = ()

    def run(self, state: State) -> Rewritten:
        """The new model; the old one is not changed."""
        raise NotImplementedError


@dataclass(frozen=True)
class Verification:
    """Compares the model as it is now with the original and returns findings."""

    name: ClassVar[str]
    needs: ClassVar[tuple[type, ...]] = ()

    def run(self, state: State) -> dict[str, Any]:
        """Findings by name, ready for JSON."""
        raise NotImplementedError


AnyPass = Analysis | Rewrite | Verification


@dataclass
class Findings:
    """What verification passes found, by pass name without `verify-`."""

    by_level: dict[str, dict[str, Any]] = field(default_factory=dict)


class PassManager:
    """Checks that what each pass needs is given before anything runs, then runs them."""

    def __init__(self, passes: Sequence[AnyPass], given: Iterable[type] = ()) -> None:
        """
        Args:
            given: facts that the state holds already.
        """
        self.passes = list(passes)
        self._check(set(given))

    def _check(self, given: set[type]) -> None:
        for one in self.passes:
            missing = [n.__name__ for n in one.needs if n not in given]
            if missing:
                raise UsageError(
                    f"pass `{one.name}` needs {', '.join(missing)}",
                    hint="name a pass that gives it before this one",
                )
            if isinstance(one, Analysis):
                given.add(one.gives)
            elif isinstance(one, Rewrite):
                given = (given & set(one.keeps)) | set(one.gives)

    def run(self, state: State) -> Findings:
        """Run every pass over the state; returns what verifications found."""
        findings = Findings()
        for one in self.passes:
            state.progress(one.name)
            start = time.perf_counter()
            if isinstance(one, Rewrite):
                self._rewrite(one, state)
            elif isinstance(one, Analysis):
                state.facts[one.gives] = one.run(state)
            else:
                findings.by_level[one.name.removeprefix("verify-")] = one.run(state)
            spent = time.perf_counter() - start
            state.seconds[one.name] = state.seconds.get(one.name, 0.0) + spent
        return findings

    def _rewrite(self, one: Rewrite, state: State) -> None:
        made = one.run(state)
        if made.model is state.model:  # nothing changed, so all that is known of it holds
            state.facts |= {type(fact): fact for fact in made.facts}
            return
        state.before |= state.facts
        state.facts = {k: v for k, v in state.facts.items() if k in one.keeps}
        state.facts |= {type(fact): fact for fact in made.facts}
        state.history.append(state.subject)
        state.subject = Subject(made.model, state.subject.given)


def installed() -> dict[str, EntryPoint]:
    """Passes of this and other packages, by name; nothing is imported."""
    return {e.name: e for e in entry_points(group=GROUP)}


def make_pass(spec: str) -> AnyPass:
    """A pass from `name` or `name{option=value,flag}`.

    Raises: UsageError: no such pass or option.
    """
    name, brace, rest = spec.partition("{")
    known = installed()
    if name not in known:
        raise UsageError(f"no pass is named `{name}`", hint=did_you_mean(name, known))
    if brace and not rest.endswith("}"):
        raise UsageError(f"`{spec}` has no closing brace")
    kind = known[name].load()
    return cast(AnyPass, kind(**_options(kind, rest.removesuffix("}"), spec) if brace else {}))


def spec(one: AnyPass) -> str:
    """The text that `make_pass` reads: the name, and options that are not their defaults."""
    given = [
        f"{f.name.replace('_', '-')}={getattr(one, f.name)}"
        for f in fields(one)
        if getattr(one, f.name) != f.default
    ]
    return one.name + (f"{{{','.join(given)}}}" if given else "")


def _options(kind: Any, text: str, spec: str) -> dict[str, Any]:
    types = {f.name: f for f in fields(kind)}
    found: dict[str, Any] = {}
    for item in filter(None, (x.strip() for x in text.split(","))):
        key, equals, value = item.partition("=")
        key = key.strip().replace("-", "_")
        if key not in types:
            hint = did_you_mean(key, types) if types else "it has none"
            raise UsageError(f"`{spec}`: no option `{key}`", hint=hint)
        found[key] = _convert(types[key].default, value.strip() if equals else "true", item)
    return found


def _convert(default: Any, text: str, item: str) -> Any:
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        return type(default)(text)
    except (ValueError, KeyError) as error:
        raise UsageError(f"`{item}`: not a {type(default).__name__}") from error
