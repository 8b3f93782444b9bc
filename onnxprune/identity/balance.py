"""Which counts parts may keep when balances tie them: integer points of linear equations.

A balance says that its rows keep equal counts. Rows are sums of parts, so the feasible kept
counts n solve A n = 0, where A holds the differences of rows. Full sizes solve it, and so does
every multiple of sizes / gcd; where that ladder is too coarse (channel shuffle over halves that
were split before) the points nearest to a proportional cut are found by integer programming.
Where a range of woven rows was taken, counts of the parts before its end may fall by one at most
from each row to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from onnxprune.identity.fields import IntArray

FloatArray = npt.NDArray[np.float64]

# Below this many steps the ladder is refined.
ENOUGH_STEPS = 8
# Widths tried between nothing and all when refining.
REFINED_STEPS = 16


def feasible_levels(
    sizes: list[int], rows: list[FloatArray], steps: Sequence[FloatArray] = ()
) -> IntArray:
    """Feasible kept counts, ascending; the last keeps all.

    Args:
        sizes: channels of each part, length P.
        rows: for each balance the weight of each part in each row, shape (rows, P).
        steps: the same for parts of woven rows: no row counts more than the one before it, and
            the last at most one less than the first.
    Returns: shape (levels, P), every count at least 1.
    """
    step = int(np.gcd.reduce(sizes))
    ladder: IntArray = np.arange(1, step + 1)[:, None] * (np.array(sizes) // step)[None, :]
    if step >= ENOUGH_STEPS or step == max(sizes):
        return ladder
    bounds = [_bounded(r[1:] - r[:1], 0) for r in rows]
    bounds += [_bounded(r[:1] - r[-1:], 1) for r in steps]
    bounds += [_bounded(r[:-1] - r[1:], 1) for r in steps]
    matrix = np.concatenate(bounds) if bounds else np.zeros((0, len(sizes) + 1))
    found = _refine(tuple(sizes), matrix.tobytes(), len(matrix))
    both = np.concatenate([ladder, np.array(found, np.int64).reshape(-1, len(sizes))])
    unique: IntArray = np.unique(both, axis=0)
    return unique[np.argsort(unique.sum(axis=1), kind="stable")]


def _bounded(matrix: FloatArray, most: float) -> FloatArray:
    """Equations whose results lie between 0 and `most`, which is the last column."""
    return np.hstack([matrix, np.full((len(matrix), 1), most)])


@lru_cache(maxsize=256)
def _refine(sizes: tuple[int, ...], matrix: bytes, count: int) -> tuple[tuple[int, ...], ...]:
    """Feasible points nearest to k / REFINED_STEPS of every part."""
    bounded = np.unique(np.frombuffer(matrix).reshape(count, len(sizes) + 1), axis=0)
    shares = np.arange(1, REFINED_STEPS) / REFINED_STEPS
    points = [_nearest(np.array(sizes), bounded, float(share)) for share in shares]
    return tuple(dict.fromkeys(tuple(p.tolist()) for p in points if p is not None))


def _nearest(sizes: IntArray, bounded: FloatArray, share: float) -> IntArray | None:
    """The feasible counts with the least summed distance from a share of each part."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    parts = len(sizes)
    eye = np.eye(parts)
    goal = share * sizes
    equations, most = bounded[:, :-1], bounded[:, -1]
    constraints = [
        LinearConstraint(np.hstack([eye, -eye]), ub=goal),
        LinearConstraint(np.hstack([-eye, -eye]), ub=-goal),
    ]
    if len(equations):
        padded = np.hstack([equations, np.zeros_like(equations)])
        constraints.append(LinearConstraint(padded, lb=0, ub=most))
    result = milp(
        np.concatenate([np.zeros(parts), np.ones(parts)]),
        integrality=np.concatenate([np.ones(parts), np.zeros(parts)]),
        bounds=Bounds(
            np.concatenate([np.ones(parts), np.zeros(parts)]),
            np.concatenate([sizes, np.full(parts, np.inf)]),
        ),
        constraints=constraints,
        # Near enough, and bounded by work, not by the clock: the same levels on every machine.
        options={"mip_rel_gap": 0.1, "node_limit": 200},
    )
    if result.x is None:
        return None
    counts: IntArray = np.round(result.x[:parts]).astype(np.int64)
    sums = equations @ counts
    return counts if bool(np.all((sums > -1e-6) & (sums < most + 1e-6))) else None
