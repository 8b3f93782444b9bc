"""The measurement is right; the clock is a stand-in, so no test depends on the machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxprune.backend.runtime import BUILDS, Session
from onnxprune.verification import latency
from onnxprune.verification.latency import (
    MIN_PAIRS,
    WINDOW,
    Environment,
    as_json,
    environment,
    measure,
    measure_one,
    measure_sessions,
    median_interval,
    warm_up,
)


class Machine:
    """A clock that models move by the time they take."""

    def __init__(self, seed: int = 0) -> None:
        self.now, self.ran = 0.0, ""
        self._generator = np.random.default_rng(seed)

    def clock(self) -> float:
        return self.now

    def model(
        self, name: str, seconds: float, noise: float = 0.0, drift: float = 0.0
    ) -> Callable[[], None]:
        def run() -> None:
            self.ran += name
            factor = (1 + drift * self.now) * np.exp(noise * self._generator.standard_normal())
            self.now += seconds * factor

        return run


def test_steady_models_need_the_least_number_of_pairs() -> None:
    """Without noise the interval has no width and the ratio is exact."""
    machine = Machine()
    found = measure(
        machine.model("a", 0.010), machine.model("b", 0.004), batch=2, clock=machine.clock
    )
    assert (found.pairs, found.is_precise) == (MIN_PAIRS, True)
    assert found.speedup == pytest.approx(2.5)
    assert found.interval == pytest.approx((2.5, 2.5))
    assert found.speedup_claimed
    assert found.reference.p50_ms == found.reference.p99_ms == pytest.approx(10)
    assert found.candidate.per_second == pytest.approx(500)


def test_pairs_are_interleaved_in_random_order_by_seed() -> None:
    """Both run once per pair, either first; another seed gives another order."""
    orders = []
    for seed in (0, 0, 1):
        machine = Machine()
        measure(machine.model("a", 0.01), machine.model("b", 0.01), seed=seed, clock=machine.clock)
        ran = machine.ran[-2 * MIN_PAIRS :]
        pairs = [ran[i : i + 2] for i in range(0, len(ran), 2)]
        assert set(pairs) == {"ab", "ba"}
        orders.append(pairs)
    assert orders[0] == orders[1] != orders[2]


def test_noise_takes_more_pairs_until_the_interval_is_narrow() -> None:
    """The stated precision is reached, and the truth lies in nearly every interval."""
    covered = pairs = 0
    for seed in range(60):
        machine = Machine(seed)
        a, b = machine.model("a", 0.010, noise=0.03), machine.model("b", 0.008, noise=0.03)
        found = measure(a, b, seed=seed, clock=machine.clock)
        low, high = found.interval
        assert found.is_precise
        assert high - low <= 0.02 * found.speedup
        covered += low <= 1.25 <= high
        pairs += found.pairs
    assert pairs > 60 * MIN_PAIRS
    assert covered >= 51  # stopping early costs some of the 95%: about 92% of many more seeds


def test_drift_of_the_machine_cancels_in_the_ratio() -> None:
    """Clock rates that halve in between leave the ratio of pairs alone."""
    machine = Machine()
    found = measure(
        machine.model("a", 0.01, drift=1.0), machine.model("b", 0.01, drift=1.0),
        clock=machine.clock,
    )  # fmt: skip
    assert found.reference.p99_ms > 1.2 * found.reference.p50_ms
    assert found.speedup == pytest.approx(1, abs=0.01)


def test_equal_models_claim_no_speedup() -> None:
    """Over many seeds the claim is false as rarely as the interval promises."""
    claims = 0
    for seed in range(40):
        machine = Machine(seed)
        a, b = machine.model("a", 0.01, noise=0.05), machine.model("b", 0.01, noise=0.05)
        found = measure(a, b, seed=seed, time_limit_s=2, clock=machine.clock)
        claims += found.speedup_claimed
    assert claims <= 4


def test_a_slower_candidate_claims_nothing() -> None:
    """The whole interval below 1 is no speed-up."""
    machine = Machine()
    found = measure(machine.model("a", 0.01), machine.model("b", 0.02), clock=machine.clock)
    assert found.speedup == pytest.approx(0.5)
    assert not found.speedup_claimed


def test_the_time_limit_ends_it() -> None:
    """Noise that never settles: what was found is returned as not precise."""
    machine = Machine()
    a, b = machine.model("a", 0.01, noise=1.0), machine.model("b", 0.01, noise=1.0)
    found = measure(a, b, time_limit_s=3, clock=machine.clock)
    assert not found.is_precise
    assert 3 <= machine.now < 3.5


def test_too_few_pairs_claim_nothing() -> None:
    """A model of 10 s a run ends at the limit, faster or not."""
    machine = Machine()
    found = measure(
        machine.model("a", 10), machine.model("b", 5), time_limit_s=60, clock=machine.clock
    )
    assert found.speedup == pytest.approx(2)
    assert found.pairs < MIN_PAIRS
    assert not found.speedup_claimed
    assert not found.is_precise


def test_the_number_of_pairs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model with wild times cannot fill memory before the limit."""
    monkeypatch.setattr(latency, "MAX_PAIRS", 100)
    machine = Machine()
    a, b = machine.model("a", 1e-6, noise=2.0), machine.model("b", 1e-6, noise=2.0)
    assert measure(a, b, clock=machine.clock).pairs == 100


def test_a_clock_too_coarse_divides_by_no_zero() -> None:
    """Times of 0 give figures, not a crash."""
    found = measure(lambda: None, lambda: None, clock=lambda: 0.0)
    assert (found.speedup, found.speedup_claimed) == (1, False)


def test_warm_up_lasts_until_times_are_steady() -> None:
    """First runs that take longer are not measured."""
    machine = Machine()
    count = 0

    def cold() -> None:
        nonlocal count
        count += 1
        machine.now += 0.01 * (1 + 50 * 0.6**count)

    found = measure(cold, machine.model("b", 0.01), clock=machine.clock)
    assert found.reference.p99_ms == pytest.approx(10, rel=0.02)
    steady = Machine()
    assert warm_up((steady.model("a", 0.01),), steady.clock, 10) == 2 * WINDOW
    assert warm_up((steady.model("a", 5),), steady.clock, 10) == 2


def test_the_interval_of_a_median_covers_it() -> None:
    """In about 95 of 100 samples; equal seeds give equal intervals."""
    covered = 0
    for seed in range(100):
        values = np.random.default_rng(seed).lognormal(0, 0.2, 60)
        low, high = median_interval(values, seed)
        covered += low <= 1 <= high
    assert 88 <= covered <= 100
    assert median_interval(values, 3) == median_interval(values, 3)


def test_one_model_alone_is_timed_to_the_number_or_the_limit() -> None:
    """As `bench` does without a second model."""
    machine = Machine()
    found = measure_one(machine.model("a", 0.01), runs=50, batch=4, clock=machine.clock)
    assert (found.runs, found.p50_ms) == (50, pytest.approx(10))
    assert found.per_second == pytest.approx(400)
    found = measure_one(machine.model("a", 2), runs=50, time_limit_s=20, clock=machine.clock)
    assert 1 <= found.runs < 12


def test_sessions_are_timed_on_the_same_feeds() -> None:
    """Both get every feed as often."""
    fed: list[tuple[str, object]] = []

    class Recorder(Session):
        def __init__(self, name: str) -> None:
            self.name = name

        def run(self, feeds: object, outputs: object = None) -> list[np.ndarray]:
            fed.append((self.name, feeds))
            return []

    feeds = {"x": np.zeros(1)}
    found = measure_sessions(Recorder("a"), Recorder("b"), feeds, time_limit_s=0.2)
    assert found.pairs >= 1
    assert all(given is feeds for _, given in fed)
    assert sum(name == "a" for name, _ in fed) * 2 == len(fed)


def test_the_record_names_what_times_depend_on(tmp_path: Path) -> None:
    """Machine, cores, versions and settings, ready for JSON."""
    where = environment("cpu", threads=2, batch=8)
    assert isinstance(where, Environment)
    assert where.machine
    assert where.cores >= 1
    assert {"python", "numpy", "onnx"} < set(where.versions)
    assert set(BUILDS) & set(where.versions)
    found = measure(lambda: None, lambda: None, clock=lambda: 0.0)
    plain = json.loads(json.dumps(as_json(found, where)))
    assert plain["environment"]["threads"] == 2
    assert plain["speedup_claimed"] is False
    (tmp_path / "cpuinfo").write_text("processor: 0\nmodel name\t: Some CPU @ 3 GHz\n")
    assert latency._machine(tmp_path / "cpuinfo") == "Some CPU @ 3 GHz"
    assert latency._machine(tmp_path / "missing")
