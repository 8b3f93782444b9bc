"""Paired timing: two models in one process, in random order, until the ratio is known.

Machines drift (clock rates, other load). Times of one pair share the drift, so their ratio is
steadier than the ratio of two separate measurements.
"""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.backend.runtime import BUILDS, Array, Session

FloatArray = npt.NDArray[np.float64]
Clock = Callable[[], float]
Run = Callable[[], object]

MIN_PAIRS = 30
# Where a model is so slow that time runs out before: figures, but no claim.
LEAST_PAIRS = 3
# A fast model reaches its precision long before; this bounds memory.
MAX_PAIRS = 5000
DRAWS = 500
LEVEL = 0.95

# Warm-up is over when the medians of two windows of runs differ by less than this.
WINDOW, STEADY, MAX_WARMUP = 5, 0.05, 50
# The largest share of the time limit that warm-up may take.
WARMUP_SHARE = 0.25


@dataclass(frozen=True)
class Times:
    """Time of one run, in milliseconds."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    per_second: float
    """Samples per second at the median."""
    runs: int


@dataclass(frozen=True)
class Latency:
    """Two models timed in pairs."""

    reference: Times
    candidate: Times
    speedup: float
    """Median over pairs of reference time / candidate time: above 1, the candidate is faster."""
    interval: tuple[float, float]
    """95% bootstrap interval of the speed-up."""
    pairs: int
    is_precise: bool
    """The interval is narrower than asked; if not, time ran out first."""

    @property
    def speedup_claimed(self) -> bool:
        """Enough pairs were timed, and the whole interval lies above 1."""
        return self.pairs >= MIN_PAIRS and self.interval[0] > 1.0


@dataclass(frozen=True)
class Environment:
    """What a time depends on besides the model."""

    machine: str
    cores: int
    system: str
    versions: dict[str, str]
    provider: str
    threads: int
    """0: as ONNX Runtime chooses."""
    batch: int


def environment(provider: str, threads: int, batch: int) -> Environment:
    """The record that stands beside every time."""
    versions = {"python": platform.python_version()}
    for name in ("numpy", "onnx", *BUILDS):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    system = f"{platform.system()} {platform.machine()}"
    return Environment(_machine(), _cores(), system, versions, provider, threads, batch)


def _machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's own name where the system tells it."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), "") or platform.processor() or platform.machine()


def _cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def measure(
    reference: Run,
    candidate: Run,
    *,
    seed: int = 0,
    batch: int = 1,
    precision: float = 0.02,
    time_limit_s: float = 60.0,
    clock: Clock = time.perf_counter,
) -> Latency:
    """Time two functions in interleaved pairs of random order.

    Stops after at least 30 pairs, as soon as the interval of the speed-up is narrower than
    `precision` relative to it, or at the time limit. A speed-up is claimed from 30 pairs on.

    Args:
        batch: samples per run, for the throughput.
        clock: seconds; an argument so that tests need not wait.
    """
    generator = np.random.default_rng(seed)
    start = clock()
    warm_up((reference, candidate), clock, time_limit_s * WARMUP_SHARE)
    pairs: list[tuple[float, float]] = []
    wanted = MIN_PAIRS
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        while True:
            pairs.append(_pair(reference, candidate, bool(generator.integers(2)), clock))
            is_late = clock() - start >= time_limit_s or len(pairs) >= MAX_PAIRS
            if len(pairs) < (LEAST_PAIRS if is_late else wanted):
                continue
            found = summarize(np.array(pairs), seed=seed, batch=batch, precision=precision)
            if is_late or found.is_precise:
                return found
            wanted = len(pairs) * 5 // 4  # the interval costs more than a pair of small models
    finally:
        if was_enabled:
            gc.enable()


def _pair(reference: Run, candidate: Run, is_swapped: bool, clock: Clock) -> tuple[float, float]:
    """Seconds of the reference and of the candidate."""
    if is_swapped:
        second = _time(candidate, clock)
        return _time(reference, clock), second
    return _time(reference, clock), _time(candidate, clock)


def _time(run: Run, clock: Clock) -> float:
    start = clock()
    run()
    return clock() - start


def warm_up(runs: tuple[Run, ...], clock: Clock, time_limit_s: float) -> int:
    """Run all in turn until their times are steady; returns how often each ran."""
    start = clock()
    times: list[list[float]] = [[] for _ in runs]
    for count in range(1, MAX_WARMUP + 1):
        for run, seen in zip(runs, times, strict=True):
            seen.append(_time(run, clock))
        if all(_is_steady(seen) for seen in times) or clock() - start >= time_limit_s:
            return count
    return MAX_WARMUP


def _is_steady(seen: list[float]) -> bool:
    if len(seen) < 2 * WINDOW:
        return False
    before, after = np.median(seen[-2 * WINDOW : -WINDOW]), np.median(seen[-WINDOW:])
    return bool(abs(after - before) <= STEADY * before)


def summarize(pairs: FloatArray, *, seed: int, batch: int, precision: float) -> Latency:
    """Percentiles and the speed-up with its interval.

    Args:
        pairs: shape (pairs, 2), seconds of reference and candidate.
    """
    # A coarse clock may read 0 for a tiny model.
    seconds = np.maximum(pairs, 1e-9)
    ratios: FloatArray = seconds[:, 0] / seconds[:, 1]
    low, high = median_interval(ratios, seed)
    speedup = float(np.median(ratios))
    is_precise = len(pairs) >= MIN_PAIRS and high - low <= precision * speedup
    first, second = (_times(column, batch) for column in seconds.T)
    return Latency(first, second, speedup, (low, high), len(pairs), is_precise)


def median_interval(values: FloatArray, seed: int) -> tuple[float, float]:
    """Bootstrap percentile interval of the median."""
    generator = np.random.default_rng(seed)
    drawn = values[generator.integers(0, len(values), (DRAWS, len(values)))]
    medians = np.median(drawn, axis=1)
    low, high = np.quantile(medians, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _times(seconds: FloatArray, batch: int) -> Times:
    p50, p90, p99 = (float(value) for value in np.quantile(seconds, [0.5, 0.9, 0.99]))
    return Times(p50 * 1e3, p90 * 1e3, p99 * 1e3, batch / p50, len(seconds))


def measure_sessions(
    reference: Session,
    candidate: Session,
    feeds: Mapping[str, Array],
    *,
    seed: int = 0,
    batch: int = 1,
    precision: float = 0.02,
    time_limit_s: float = 60.0,
) -> Latency:
    """Time two sessions, made with equal settings, on the same feeds."""
    return measure(
        lambda: reference.run(feeds),
        lambda: candidate.run(feeds),
        seed=seed,
        batch=batch,
        precision=precision,
        time_limit_s=time_limit_s,
    )


def measure_one(
    run: Run,
    *,
    batch: int = 1,
    runs: int = 100,
    time_limit_s: float = 60.0,
    clock: Clock = time.perf_counter,
) -> Times:
    """Time one function after warm-up: `runs` times, or fewer at the time limit."""
    start = clock()
    warm_up((run,), clock, time_limit_s * WARMUP_SHARE)
    seconds = [_time(run, clock)]
    while len(seconds) < runs and clock() - start < time_limit_s:
        seconds.append(_time(run, clock))
    return _times(np.maximum(np.array(seconds), 1e-9), batch)


def as_json(found: Latency, where: Environment) -> dict[str, Any]:
    """Both as plain values, for reports."""
    claim = {"speedup_claimed": found.speedup_claimed}
    return asdict(found) | claim | {"environment": asdict(where)}
