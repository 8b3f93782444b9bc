"""What a command runs: options as the user gave them, and the passes they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from onnxprune.backend.runtime import provider_name
from onnxprune.errors import UsageError, did_you_mean
from onnxprune.manager import AnyPass, Verification, installed, make_pass
from onnxprune.planning.cost import TARGETS
from onnxprune.samples.metrics import find as find_metric

AUTO = "auto"
ALLOCATE = (AUTO, "uniform", "global", "curves")
# Those that look at damage.
MEASURED = (AUTO, "curves")
CLEAN_UPS = ("clean-constant", "clean-duplicate", "clean-unread")
DEFAULT_SCORE = "in-out"


@dataclass(frozen=True)
class PruneOptions:
    """How to prune; the command line's options have the same names."""

    target: Mapping[str, float] = field(default_factory=dict)
    """Share of the original's cost to keep at most, by name: macs, params, bytes."""
    score: str = DEFAULT_SCORE
    """A score pass, with or without `score-`; options in braces."""
    allocate: str = AUTO
    """How widths are shared out: uniform, global, curves; auto is curves with samples."""
    rounds: int = 1
    """Cut in so many rounds, and measure again what each left."""
    exact: bool = False
    """Cut exact Dims only, with data too."""
    approximate: bool = False
    """Cut approximate Dims, without data too."""
    exact_only: bool = False
    """Only the exact clean-ups, no budget."""
    max_drop: float | None = None
    """Go to the smallest model whose metric drops no more; targets are the least to go to."""
    repair: bool = True
    """Refit what is left, where there are samples to do it with: data, or seeded inputs."""
    skip: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    keep: Mapping[str, float] = field(default_factory=dict)
    """Pattern -> channels (above 1) or share of them to keep."""
    multiple: int = 0
    """Width multiple; 0 chooses by width."""
    custom_ops: tuple[str, ...] = ()
    """Libraries of custom operators; they are loaded and run."""
    seed: int = 0
    workers: int = 0
    """Threads that measure damage; 0: as many as there are cores, at most 4."""


@dataclass(frozen=True)
class VerifyOptions:
    """How to compare two models."""

    metric: str = ""
    """Empty: accuracy or r2 with labels, agreement without."""
    higher_is_better: bool | None = None
    """The direction of a metric of the user's own."""
    output: str = ""
    """The output that the metric reads; empty: the first that fits."""
    provider: str = "cpu"
    threads: int = 0
    batch: int = 1
    """Batch size of the latency figures."""
    latency_s: float = 5.0
    """Time limit of the latency measurement; 0 leaves it out."""
    custom_ops: tuple[str, ...] = ()
    seed: int = 0


def check_options(options: PruneOptions) -> None:
    """Refuse what cannot be meant, before anything is loaded.

    Raises: UsageError: says which option and why.
    """
    for option in ("target", "keep"):
        given = getattr(options, option)
        if not isinstance(given, Mapping) or not all(
            isinstance(n, (int, float)) for n in given.values()
        ):
            raise UsageError(
                f"`{option}` is no mapping to numbers", hint='for example {"macs": 0.5}'
            )
    for option, kind in (("score", str), ("allocate", str), ("multiple", int), ("seed", int),
                         ("rounds", int), ("workers", int)):  # fmt: skip
        if not isinstance(getattr(options, option), kind):
            raise UsageError(f"`{option}` is no {kind.__name__}")
    _check_allocate(options)
    for option in ("seed", "workers"):
        if getattr(options, option) < 0:
            raise UsageError(f"`{option}` is negative", hint="give a number of at least 0")
    for name, share in options.target.items():
        if name not in TARGETS:
            raise UsageError(f"no cost is named `{name}`", hint=did_you_mean(name, TARGETS))
        if not 0 < share <= 1:
            raise UsageError(
                f"`--target {name}={share:g}` is no share to keep",
                hint="give a number above 0 and at most 1, such as 0.5",
            )
    if options.exact and options.approximate:
        raise UsageError("`--exact` and `--approximate` exclude each other")
    if options.exact_only and (options.target or options.keep):
        raise UsageError("`--exact-only` takes no budget", hint="leave out --target and --keep")
    if options.max_drop is not None:
        _check_drop(options)
    elif not (options.exact_only or options.target or options.keep):
        raise UsageError(
            "nothing says how much to cut",
            hint="give --target macs=0.5, --max-drop 0.01 with --data, or --exact-only",
        )
    if options.multiple < 0:
        raise UsageError("`--multiple` must be at least 1", hint="leave it out to choose by width")


def _check_drop(options: PruneOptions) -> None:
    drop = options.max_drop
    if not isinstance(drop, (int, float)) or not 0 <= drop < float("inf"):
        raise UsageError(f"`--max-drop {drop}` is no number of at least 0", hint="such as 0.01")
    if options.exact_only:
        raise UsageError("`--exact-only` takes no budget", hint="leave out --max-drop")


def _check_allocate(options: PruneOptions) -> None:
    if options.allocate not in ALLOCATE:
        raise UsageError(
            f"no allocator is named `{options.allocate}`",
            hint=did_you_mean(options.allocate, ALLOCATE),
        )
    if options.rounds < 1:
        raise UsageError(f"`--rounds {options.rounds}` is no number of at least 1")
    if options.rounds > 1 and options.allocate not in MEASURED:
        raise UsageError(
            f"rounds measure damage again, which `--allocate {options.allocate}` does not look at",
            hint="leave out --rounds, or give --allocate curves",
        )


def check_measures(options: PruneOptions, *, has_samples: bool, has_curves: bool) -> bool:
    """Whether damage is measured, or known.

    Args:
        has_samples: there are samples to fit on and to decide on.
        has_curves: curves were read from a file.
    Raises: UsageError: an option asks for it, and it cannot be.
    """
    can = has_samples or has_curves
    if options.exact_only:
        return False
    if options.allocate not in MEASURED:
        if has_curves:
            raise UsageError(
                f"`--allocate {options.allocate}` does not look at curves",
                hint="leave out --curves, or give --allocate curves",
            )
        return False
    asked = "--rounds" if options.rounds > 1 else "--allocate curves"
    if not (has_samples if options.rounds > 1 else can or options.allocate == AUTO):
        raise UsageError(
            f"`{asked}` measures damage on samples, and there are none or too few",
            hint="give --data with some hundred samples",
        )
    return can


def as_patterns(given: str | Iterable[str]) -> tuple[str, ...]:
    """One pattern, or several."""
    return (given,) if isinstance(given, str) else tuple(given)


def check_comparison(options: VerifyOptions) -> None:
    """Refuse a provider or metric that is not there, before any work is done.

    Raises: UsageError: says which.
    """
    provider_name(options.provider)
    if options.metric:
        find_metric(options.metric, higher_is_better=options.higher_is_better)
    for name in ("threads", "batch", "latency_s"):
        if getattr(options, name) < 0:
            raise UsageError(f"`{name}` is {getattr(options, name):g}; it cannot be negative")


def score_pass(spec: str) -> AnyPass:
    """The score pass of a name such as `l2` or `score-l2{per-weight}`.

    Raises: UsageError: there is none.
    """
    name = spec if spec.startswith("score-") else f"score-{spec}"
    if name.partition("{")[0] not in installed():
        short = sorted(n.removeprefix("score-") for n in installed() if n.startswith("score-"))
        raise UsageError(
            f"no score is named `{spec}`",
            hint=did_you_mean(spec.removeprefix("score-").partition("{")[0], short),
        )
    return make_pass(name)


def clean_ups(names: Iterable[str] = CLEAN_UPS) -> list[AnyPass]:
    """Dims, and the exact clean-ups, which find them again where they change the model."""
    return [make_pass("find-dims"), *(make_pass(name) for name in names)]


def metric_pass(options: VerifyOptions) -> Verification:
    """What measures the metric."""
    from onnxprune.passes.verify_metric import VerifyMetric

    better = {None: "", True: "higher", False: "lower"}[options.higher_is_better]
    return VerifyMetric(options.metric, options.output, better, options.custom_ops)


def verify_passes(options: VerifyOptions) -> list[AnyPass]:
    """Every level of verification."""
    from onnxprune.passes.verify_latency import VerifyLatency
    from onnxprune.passes.verify_outputs import VerifyOutputs
    from onnxprune.passes.verify_run import VerifyRun
    from onnxprune.passes.verify_structure import VerifyStructure

    custom = options.custom_ops
    return [
        VerifyStructure(),
        VerifyRun(custom_ops=custom),
        VerifyOutputs(custom_ops=custom),
        metric_pass(options),
        VerifyLatency(
            provider=options.provider,
            threads=options.threads,
            batch=options.batch,
            seconds=options.latency_s,
            custom_ops=custom,
        ),
    ]


def sensitivity_passes(custom_ops: tuple[str, ...]) -> list[AnyPass]:
    """Everything up to the damage of each Dim."""
    from onnxprune.passes.measure_damage import MeasureDamage

    measure = MeasureDamage(custom_ops=custom_ops, required=True)
    return [*clean_ups(), score_pass(DEFAULT_SCORE), measure]


def prune_passes(
    options: PruneOptions, *, has_data: bool, measures: bool, has_samples: bool = False
) -> list[AnyPass]:
    """Everything up to the cut, verification not included.

    Args:
        measures: damage is measured, or known.
        has_samples: there is something to repair on without data, too.
    """
    from onnxprune.passes.cut_channels import CutChannels
    from onnxprune.passes.repair_readers import RepairReaders
    from onnxprune.passes.run_original import RunOriginal

    trial = RunOriginal(custom_ops=options.custom_ops)
    if options.exact_only:
        return [trial, *clean_ups()]
    cut = CutChannels(custom_ops=options.custom_ops)
    repair = RepairReaders(custom_ops=options.custom_ops, copies=_may_copy(options))
    repairs = [repair] if options.repair and (has_data or has_samples) else []
    return [*plan_passes(options, has_data=has_data, measures=measures), trial, cut, *repairs]


def plan_passes(options: PruneOptions, *, has_data: bool, measures: bool) -> list[AnyPass]:
    """Everything up to the plan: what a dry run does."""
    from onnxprune.passes.check_plan import CheckPlan
    from onnxprune.passes.make_plan import MakePlan
    from onnxprune.passes.measure_damage import MeasureDamage
    from onnxprune.passes.refine_plan import RefinePlan

    chosen: dict[str, Any] = {
        "targets": tuple(options.target.items()),
        "allocate": options.allocate,
        "multiple": options.multiple,
        "approximate": options.approximate or (has_data and not options.exact),
        "skip": as_patterns(options.skip),
        "only": as_patterns(options.only),
        "keep": tuple(options.keep.items()),
    }
    before = [*clean_ups(), _with_custom(score_pass(options.score), options.custom_ops)]
    if not measures:
        return [*before, MakePlan(**chosen)]
    copies = _may_copy(options)
    measure = MeasureDamage(custom_ops=options.custom_ops, copies=copies)
    plan = RefinePlan(**chosen, rounds=options.rounds, custom_ops=options.custom_ops,
                      copies=copies)  # fmt: skip
    return [*before, CheckPlan(**chosen), measure, plan]


def _may_copy(options: PruneOptions) -> bool:
    """Whether repair may copy small weights: targets of size would be exceeded."""
    return not {"params", "bytes"} & options.target.keys()


def _with_custom(one: AnyPass, custom_ops: tuple[str, ...]) -> AnyPass:
    """The pass with the user's libraries, where it runs the model."""
    given: dict[str, Any] = {"custom_ops": custom_ops}
    return replace(one, **given) if any(f.name in given for f in fields(one)) else one
