"""Which directions of a stream are the best, and what is lost where only those stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.damage.obs import Problem, damped, lost
from onnxprune.damage.streams import Kind, Turnable
from onnxprune.damage.sums import Sums
from onnxprune.readers.stats import FloatArray, Moments, total

# Weight of the identity in what is seen of a stream, relative to its mean diagonal.
RIDGE = 1e-6


def helmert(count: int) -> FloatArray:
    """An orthonormal basis of what has no mean. Returns: shape (count, count - 1)."""
    made = np.triu(np.ones((count, count - 1)))
    made[np.arange(1, count), np.arange(count - 1)] = -np.arange(1.0, count)
    found: FloatArray = made / np.linalg.norm(made, axis=0)
    return found


def directions(
    stream: Turnable, weights: Mapping[str, FloatArray], sums: Mapping[str, Sums]
) -> FloatArray:
    """Directions of what is seen of a stream, the best first, by the samples to fit on.

    Where norms see it, those that it varies most along: what a norm divides by is the sum over
    all. Else those that its readers lose most without: k of them leave
    sum_r |W_r (x - B_k F_k x)|^2 least, where F_k are the leading rows of U' L^-1, U the
    eigenvectors of L' (sum_r W_r' W_r) L, and L L' the covariance (reduced-rank regression, Izenman
    1975). Each reader counts alike.

    Args:
        weights: of each reader, in units of the damage that its errors do.
    Returns: shape (channels, channels - spare): orthonormal, and without a mean where norms take
    it away.
    """
    count = len(stream.sights[0].scale)
    spread, metric = np.zeros((count, count)), np.zeros((count, count))
    for sight in stream.sights:
        for key in sight.keys:
            seen = folded(sight.plain(total(sums[key].folds[:-1])).covariance, count)
            spread += seen / max(float(np.trace(seen)), 1e-30)
            own = weights[key].reshape(len(weights[key]), count, -1) * sight.scale[:, None]
            metric += np.einsum("oct,odt->cd", own, own, optimize=True)
    basis = helmert(count) if stream.spare else np.eye(count)
    spread = basis.T @ spread @ basis
    if stream.kind is not Kind.PLAIN:
        leading: FloatArray = basis @ np.linalg.eigh(spread)[1][:, ::-1]
        return leading
    root = np.linalg.cholesky(damped(spread, RIDGE))
    _, best = np.linalg.eigh(root.T @ metric @ root)
    found: FloatArray = np.linalg.qr(np.linalg.solve(root.T, best[:, ::-1]))[0]
    return found


def folded(products: FloatArray, count: int) -> FloatArray:
    """Products of channels from those of all that is seen of them: summed over a kernel's taps."""
    taps = len(products) // count
    found: FloatArray = np.einsum("ctdt->cd", products.reshape(count, taps, count, taps))
    return found


def losses(
    stream: Turnable,
    directions: FloatArray,
    weights: Mapping[str, FloatArray],
    sums: Mapping[str, Sums],
    kept: Sequence[int],
    ridges: Sequence[float],
) -> list[float]:
    """Damage of keeping so many channels of a stream, on held-out samples, summed over readers.

    Args:
        directions: the best first, as `directions` gives them.
        weights: of each reader, in units of the damage that its errors do.
    Returns: one number for each of `kept`.
    """
    count = directions.shape[1]
    problems = []
    for sight in stream.sights:
        for key in sight.keys:
            taps = weights[key].shape[1] // len(sight.scale)
            made = weights[key] * np.repeat(sight.scale, taps)
            problems.append(
                Problem(
                    _times(made, directions),
                    np.repeat(np.arange(count), taps),
                    [_seen_along(directions, sight.plain(fold)) for fold in sums[key].folds],
                )
            )
    gone = [np.arange(max(k - stream.spare, 0), count) for k in kept]
    return [sum(lost(one, g, ridges) for one in problems) for g in gone]


def _times(rows: FloatArray, directions: FloatArray) -> FloatArray:
    """Rows over channels and taps as rows over directions and taps."""
    taps = rows.shape[1] // len(directions)
    apart = rows.reshape(len(rows), len(directions), taps)
    found: FloatArray = np.einsum("oct,cd->odt", apart, directions, optimize=True)
    return found.reshape(len(rows), -1)


def _seen_along(directions: FloatArray, seen: Moments) -> Moments:
    half = _times(seen.aa, directions)
    aa = _times(np.ascontiguousarray(half.T), directions)
    return Moments(seen.n, _times(seen.a[None], directions)[0], seen.t, aa, seen.at, seen.tt)
