"""Which counts parts may keep when balances tie them: integer points of linear equations.

A balance says that its rows keep equal counts. Rows are sums of parts, so the feasible kept
counts n solve A n = 0, where A holds the differences of rows. Full sizes solve it, and so does
every multiple of sizes / gcd; where that ladder is too coarse (channel shuffle over halves that
were split before) the points nearest to a proportional cut are found by integer programming.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from onnxprune.fields import IntArray

FloatArray = npt.NDArray[np.float64]

# Below this many steps the ladder is refined.
ENOUGH_STEPS = 8
# Widths tried between nothing and all when refining.
REFINED_STEPS = 16


def feasible_levels(sizes: list[int], rows: list[FloatArray]) -> IntArray:
    """Feasible kept counts, ascending; the last keeps all.

    Args:
        sizes: channels of each part, length P.
        rows: for each balance the weight of each part in each row, shape (rows, P).
    Returns: shape (levels, P), every count at least 1.
    """
    step = int(np.gcd.reduce(sizes))
    ladder: IntArray = np.arange(1, step + 1)[:, None] * (np.array(sizes) // step)[None, :]
    if step >= ENOUGH_STEPS or step == max(sizes):
        return ladder
    equations = [r[1:] - r[:1] for r in rows]
    matrix = np.concatenate(equations) if equations else np.zeros((0, len(sizes)))
    found = _refine(tuple(sizes), matrix.tobytes(), len(matrix))
    both = np.concatenate([ladder, np.array(found, np.int64).reshape(-1, len(sizes))])
    unique: IntArray = np.unique(both, axis=0)
    return unique[np.argsort(unique.sum(axis=1), kind="stable")]


@lru_cache(maxsize=256)
def _refine(sizes: tuple[int, ...], matrix: bytes, count: int) -> tuple[tuple[int, ...], ...]:
    """Feasible points nearest to k / REFINED_STEPS of every part."""
    equations = np.frombuffer(matrix).reshape(count, len(sizes))
    unique = np.unique(equations, axis=0)
    points = [_nearest(np.array(sizes), unique, k / REFINED_STEPS) for k in range(1, REFINED_STEPS)]
    return tuple(dict.fromkeys(tuple(p.tolist()) for p in points if p is not None))


def _nearest(sizes: IntArray, equations: FloatArray, share: float) -> IntArray | None:
    """The feasible counts with the least summed distance from a share of each part."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    parts = len(sizes)
    eye = np.eye(parts)
    goal = share * sizes
    constraints = [
        LinearConstraint(np.hstack([eye, -eye]), ub=goal),
        LinearConstraint(np.hstack([-eye, -eye]), ub=-goal),
    ]
    if len(equations):
        padded = np.hstack([equations, np.zeros_like(equations)])
        constraints.append(LinearConstraint(padded, lb=0, ub=0))
    result = milp(
        np.concatenate([np.zeros(parts), np.ones(parts)]),
        integrality=np.concatenate([np.ones(parts), np.zeros(parts)]),
        bounds=Bounds(
            np.concatenate([np.ones(parts), np.zeros(parts)]),
            np.concatenate([sizes, np.full(parts, np.inf)]),
        ),
        constraints=constraints,
        options={"time_limit": 2.0},
    )
    if result.x is None:
        return None
    counts: IntArray = np.round(result.x[:parts]).astype(np.int64)
    fits = not len(equations) or bool(np.allclose(equations @ counts, 0))
    return counts if fits else None
