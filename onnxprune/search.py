"""The smallest model whose metric drops no more than it may: budgets tried one after the other.

Every budget is cut and repaired from the original: repairs of repairs drift. Budgets fall in
geometric steps; between the last that held and the first that did not, bisection goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Any

from onnxprune.errors import BudgetError, DataError, ProgressError
from onnxprune.manager import AnyPass, PassManager, State
from onnxprune.passes.make_plan import MakePlan
from onnxprune.passes.refine_plan import RefinePlan
from onnxprune.passes.run_original import RunOriginal
from onnxprune.planning.cost import TARGETS
from onnxprune.planning.plan import Plan
from onnxprune.planning.refusal import WORDS
from onnxprune.planning.scores import Scores
from onnxprune.recipe import AUTO, PruneOptions, VerifyOptions, metric_pass, prune_passes
from onnxprune.samples.metrics import find
from onnxprune.verification.outputs import Outputs

# Each budget is so much of the one before it; bisection then closes in on the drop: the last
# two budgets differ by less than 3%, which is as far as most plans tell them apart.
STEP = 0.8
BISECTIONS = 3
# Budgets nearer to each other than this are one.
CLOSE = 1 + 1e-6
# A metric whose multiples of a sample are whole, but for rounding, counts samples ...
COUNTS = 1e-6
# ... and a drop of fewer than these is half noise: its standard error is about its root.
FEW = 5


@dataclass(frozen=True)
class Tried:
    """One budget, and what came of it."""

    share: float
    """Of the original's cost, that was asked for."""
    cost: Mapping[str, float]
    """Share of each cost that the plan keeps."""
    value: float
    """The metric, on the samples to decide on."""
    drop: float
    holds: bool
    """The metric drops no more than it may."""


@dataclass(frozen=True)
class Descent:
    """All budgets that were tried, in their order."""

    metric: str
    before: float
    max_drop: float
    samples: int
    """That the metric was measured on: those to decide on, which no figure is from."""
    path: tuple[Tried, ...]

    @property
    def best(self) -> Tried | None:
        """The least cost that holds."""
        held = [one for one in self.path if one.holds]
        return min(held, key=lambda one: one.share, default=None)


Attempt = Callable[[float], Tried]


def descend(least: float, attempt: Attempt) -> list[Tried]:
    """Try budgets from the original's cost downwards.

    Args:
        least: the share to go to at least.
        attempt: what comes of a share.
    Returns: every budget that was tried, in this order.
    """
    path: list[Tried] = []
    good, bad, share = 1.0, None, 1.0
    while bad is None and (share > least or not path):
        share = max(share * STEP, least)
        path.append(attempt(share))
        good, bad = (share, None) if path[-1].holds else (good, share)
    for _ in range(BISECTIONS if bad is not None else 0):
        assert bad is not None, "the loop is left out otherwise"
        share = sqrt(good * bad)
        if not bad * CLOSE < share < good:
            break  # the least that was asked for is the original itself, as good as
        path.append(attempt(share))
        good, bad = (share, bad) if path[-1].holds else (good, share)
    return path


@dataclass(eq=False)
class Search:
    """Budgets of one model, cut and repaired on its data."""

    state: State
    """With samples to fit on and to decide on."""
    options: PruneOptions
    """With `max_drop`; targets are the least to go to."""
    comparison: VerifyOptions
    has_data: bool
    measures: bool
    known: Descent | None = None
    """The begin of the path, where an interrupted search found it."""
    after_each: Callable[[Descent], None] = lambda _: None
    """Told of the path so far."""
    after_head: Callable[[State], None] = lambda _: None
    """Told when damage is measured."""
    _found: Descent | None = None
    _known_metrics: dict[bytes, dict[str, Any]] = field(default_factory=dict)
    """By what a plan keeps: near budgets often have the same plan."""
    _goals: Mapping[str, float] = field(default_factory=dict)
    _best: _Made | None = None

    def run(self) -> list[AnyPass]:
        """Search, and leave the state as a prune to the best budget does.

        Returns: the passes of that prune.
        Raises: BudgetError: no budget holds.
        """
        self._check_metric()
        head, tail = self._split({})
        PassManager(head).run(self.state)
        self.after_head(self.state)
        self._goals = self._least(tail[0])
        descend(min(self._goals.values()), self._attempt)
        assert self._found is not None, "at least one share was tried"
        best = self._found.best
        if best is None:
            raise _too_much(self._found)
        if self._best is None or self._best.share != best.share:
            self._best = self._cut(best.share)
        self._take_over(self._best.state, self._found)
        if _is_coarse(self._found):
            self.state.warnings.append(
                f"{self._found.samples} samples to decide on tell a drop of {self._limit:g} badly: "
                f"each counts {1 / self._found.samples:.2g}; give more data"
            )
        return self._passes(self._targets(best.share))

    def _check_metric(self) -> None:
        """Refuse a metric that cannot be measured, before anything dear is done."""
        name, labels = self.comparison.metric, self.state.calibration[1].labels
        metric = name and find(name, higher_is_better=self.comparison.higher_is_better)
        if metric and metric.needs_labels and labels is None:
            raise DataError(
                f"the drop of `{name}` is measured by labels, and the data has none",
                hint="give --data with labels, or --metric agreement",
            )

    def _passes(self, targets: Mapping[str, float]) -> list[AnyPass]:
        options = replace(self.options, target=targets)
        passes = prune_passes(options, has_data=self.has_data, measures=self.measures)
        # Budgets are many: each is planned from the curves, and not compared with other plans.
        compares = options.allocate != AUTO
        return [
            replace(one, candidates=compares) if isinstance(one, RefinePlan) else one
            for one in passes
        ]

    def _split(self, targets: Mapping[str, float]) -> tuple[list[AnyPass], list[Any]]:
        """What is done once, and for each budget: from the plan on."""
        passes = self._passes(targets)
        at = next(i for i, one in enumerate(passes) if isinstance(one, MakePlan))
        trial = [one for one in passes[at:] if isinstance(one, RunOriginal)]
        return [*passes[:at], *trial], [one for one in passes[at:] if one not in trial]

    def _least(self, plan: MakePlan) -> dict[str, float]:
        """The targets, but none below the smallest plan; without any that of the MACs.

        Raises: BudgetError: nothing can be cut.
        """
        planner = plan.planner(self.state, self.state[Scores], None)
        if not (planner.open or planner.fixed):
            raise BudgetError(
                "nothing can be cut", hint="`onnxprune inspect MODEL` says of each Dim why"
            )
        least = planner.least()
        counted = [name for name in TARGETS if getattr(planner.cost.whole, name)]
        asked = self.options.target or dict.fromkeys(counted[:1], 0.0)
        return {name: max(share, least.ratios[name]) for name, share in asked.items()}

    def _targets(self, share: float) -> dict[str, float]:
        return {name: max(goal, share) for name, goal in self._goals.items()}

    def _attempt(self, share: float) -> Tried:
        done = 0 if self._found is None else len(self._found.path)
        if self.known is not None and done < len(self.known.path):
            self._found = replace(self.known, path=self.known.path[: done + 1])
            if self._found.path[-1].share != share or self.known.max_drop != self._limit:
                raise ProgressError("the budgets that were found are none of this run",
                                    hint="start anew, without --resume")  # fmt: skip
            return self._found.path[-1]
        made = self._cut(share)
        metric = self._measured(made)
        tried = Tried(share, made.cost, metric["after"], metric["drop"],
                      metric["drop"] <= self._limit)  # fmt: skip
        path = () if self._found is None else self._found.path
        self._found = Descent(metric["name"], metric["before"], self._limit, metric["samples"],
                              (*path, tried))  # fmt: skip
        if tried.holds:
            self._best = made
        self.after_each(self._found)
        return tried

    @property
    def _limit(self) -> float:
        assert self.options.max_drop is not None, "the option that a search is for"
        return self.options.max_drop

    def _cut(self, share: float) -> _Made:
        """The model of a budget, from the original."""
        state = self.state
        work = replace(state, facts=dict(state.facts), before=dict(state.before),
                       warnings=list(state.warnings), history=list(state.history))  # fmt: skip
        plan, *rest = self._split(self._targets(share))[1]
        PassManager([plan], given=work.facts).run(work)
        found = work[Plan]
        key = found.alive.tobytes() + repr(sorted(found.levels.items())).encode()
        if self._best is not None and self._best.key == key:
            return replace(self._best, share=share)
        PassManager(rest, given=work.facts).run(work)
        return _Made(share, key, work)

    def _measured(self, made: _Made) -> dict[str, Any]:
        """The metric on the samples to decide on.

        Raises: DataError: it cannot be measured on them.
        """
        if made.key in self._known_metrics:
            return self._known_metrics[made.key]
        facts = {kind: fact for kind, fact in made.state.facts.items() if kind is not Outputs}
        _, decide = self.state.calibration
        judged = replace(made.state, data=decide, facts=facts, warnings=[])
        self.state.progress("decide")
        found = metric_pass(self.comparison).run(judged)
        if "skipped" in found or found["drop"] is None:
            reason = found.get("skipped", "it is not defined on these samples")
            raise DataError(
                f"the drop cannot be measured: {reason}", hint="name another --metric"
            )
        self._known_metrics[made.key] = found
        return found

    def _take_over(self, best: State, descent: Descent) -> None:
        """Bring the best budget's model into the state that the search began with."""
        coarse = best.past(Plan).coarse  # speaks of a budget that nobody asked for
        self.state.facts = {**best.facts, Descent: descent}
        self.state.before, self.state.history = best.before, best.history
        self.state.subject = best.subject
        self.state.warnings = [text for text in best.warnings if text != coarse]


@dataclass(frozen=True, eq=False)
class _Made:
    """The model of a budget."""

    share: float
    key: bytes
    """Which channels stay."""
    state: State

    @property
    def cost(self) -> dict[str, float]:
        """Share of each cost that the plan keeps."""
        return self.state.past(Plan).ratios


def _is_coarse(found: Descent) -> bool:
    """True where the metric counts samples, and the drop is only a few of them."""
    counts = [one.value * found.samples for one in found.path]
    is_count = all(abs(count - round(count)) < COUNTS for count in counts)
    return is_count and found.max_drop * found.samples < FEW


def _too_much(found: Descent) -> BudgetError:
    """Not even the least cut holds."""
    least = max(found.path, key=lambda one: one.share)
    kept = ", ".join(f"{share:.1%} of {WORDS[name]}" for name, share in least.cost.items())
    return BudgetError(
        f"even the least cut that was tried drops {found.metric} by {least.drop:.4f}, more than "
        f"--max-drop {found.max_drop:g}",
        where=f"it keeps {kept}; measured on the {found.samples} samples to decide on",
        hint="allow a larger drop, or give more data to repair on",
    )
