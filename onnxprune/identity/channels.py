"""Joins identities into channels: what is equal, which rows are whose, what may not go."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from onnxprune.identity.fields import IntArray
from onnxprune.identity.ties import Ties

# Heads of heads: parents that have parents.
LEVELS = 8

Reasons = tuple[IntArray, list[str]]


def join(ties: Ties) -> tuple[IntArray, IntArray]:
    """Channel of each identity, and (parent, child) links between channels.

    Parents that share a child go together: each is gone exactly if the child's row is. One that
    has a single child is that child.
    """
    pairs = [np.stack(p).astype(np.int64) for p in ties.pairs]
    links = np.concatenate(
        [np.stack(x, axis=1).astype(np.int64) for x in ties.links] or [np.zeros((0, 2), np.int64)]
    )
    while True:
        of = components(ties.count, pairs)
        linked = np.unique(of[links], axis=0) if len(links) else links
        other = linked[linked[:, 0] != linked[:, 1]]
        single = np.bincount(other[:, 0], minlength=ties.count) == 1
        alone = single[of[links[:, 0]]] & (of[links[:, 0]] != of[links[:, 1]])
        if alone.any():
            pairs.append(links[alone].T)
            links = links[~alone]
            continue
        own = linked[linked[:, 0] == linked[:, 1], 0]
        stuck = linked[np.isin(linked[:, 0], own) & (linked[:, 0] != linked[:, 1])]
        order = np.argsort(linked[:, 1], kind="stable")
        by_child = linked[order]
        shared = by_child[1:][by_child[1:, 1] == by_child[:-1, 1], 0], by_child[:-1][
            by_child[1:, 1] == by_child[:-1, 1], 0
        ]
        merge = [np.stack(shared), stuck.T, _unsteady(ties, of), _crossed(ties, of, linked)]
        if not any(m.size for m in merge):
            return of, other
        first = np.unique(of, return_index=True)[1]
        pairs += [first[m] for m in merge if m.size]


def _unsteady(ties: Ties, of: IntArray) -> IntArray:
    """Pairs of channels that must be one, for rows laid into one another to keep their order.

    Rows of channels of their own may keep what they like, and rows alike keep the same. Where a
    channel stands in two rows at different places, the rows would change places with it.
    """
    found = [np.zeros((2, 0), np.int64)]
    for rows in ties.weaves:
        channels = of[rows]
        if (channels == channels[0]).all():
            continue
        places = np.broadcast_to(np.arange(rows.shape[1]), rows.shape)
        at = np.unique(np.stack([channels.ravel(), places.ravel()]), axis=1)[0]
        if (np.diff(at) == 0).any():
            alike = np.broadcast_to(channels[0], channels.shape)
            found.append(np.stack([channels.ravel(), alike.ravel()]))
    return np.concatenate(found, axis=1)


def _crossed(ties: Ties, of: IntArray, links: IntArray) -> IntArray:
    """Pairs of parents that must be one: rows on several axes go along one of these alone.

    Queries, keys and values packed as (3, heads, size) lose the same heads, also where a layer
    between scores and values mixes heads, so that those of values are others.
    """
    parent = np.full(int(of.max(initial=-1)) + 1, -1, np.int64)
    parent[links[:, 1]] = links[:, 0]
    found = [np.zeros((2, 0), np.int64)]
    placed = [*ties.fields.values(), *(source.fields for source in ties.sources.values())]
    for one in (f for fields in placed for f in fields if len(f.axes) > 2):
        ids = of[one.ids]
        first = ids.take(0, axis=one.thin)
        is_one = (ids == ids.take([0], axis=one.thin)).all(axis=one.thin)
        above = np.where((parent[first] < 0) & is_one, first, parent[first])
        for _ in range(LEVELS):  # heads that go by groups go along the axis of these
            above = np.where((above >= 0) & (parent[above] >= 0), parent[above], above)
        varies = [a for a in range(above.ndim) if (np.diff(above, axis=a) != 0).any()]
        if len(varies) > 1 and above.min() >= 0:
            alike = above
            for axis in varies[:-1]:
                alike = alike.take([0], axis=axis)
            alike = np.broadcast_to(alike, above.shape)
            found.append(np.stack([above.ravel(), alike.ravel()]))
    return np.concatenate(found, axis=1)


def components(count: int, pairs: Sequence[IntArray]) -> IntArray:
    if not pairs or not count:
        return np.arange(count)
    both = np.concatenate(pairs, axis=1)
    graph = coo_matrix((np.ones(both.shape[1], np.int8), (both[0], both[1])), (count, count))
    labels: IntArray = connected_components(graph, directed=False)[1].astype(np.int64)
    return labels


def reasons(of: IntArray, marks: list[tuple[IntArray, str]], count: int) -> Reasons:
    """First reason given for each channel: an index into the texts, -1 for none."""
    first = np.full(count, -1, np.int64)
    texts: list[str] = []
    for ids, reason in marks:
        channels = of[ids]
        first[channels[first[channels] < 0]] = len(texts)
        texts.append(reason)
    return first, texts


def hold_parents(pins: Reasons, links: IntArray) -> None:
    """What is said of a channel holds for the row it is in: a row with a pin cannot go."""
    while True:
        held = links[(pins[0][links[:, 1]] >= 0) & (pins[0][links[:, 0]] < 0)]
        if not len(held):
            return
        pins[0][held[:, 0]] = pins[0][held[:, 1]]


def hold_across(pins: Reasons, parent: IntArray, table: IntArray) -> None:
    """Rows that lie across those of another balance cannot go: it would become uneven."""
    owners = table
    for _ in range(LEVELS):
        owners = np.where(owners >= 0, parent[owners], -1)
        if owners.max() < 0:
            return
        above, index = np.unique(owners, return_inverse=True)
        counts = np.zeros((len(table), len(above)), np.int64)
        np.add.at(counts, (np.arange(len(table))[:, None], index.reshape(table.shape)), 1)
        # Where a row of the table is gone with them, it has nothing to keep equal.
        partly = np.ma.masked_equal(counts, table.shape[1])
        uneven = above[np.ma.filled(partly.max(axis=0) != partly.min(axis=0), False)]
        held = uneven[uneven >= 0]
        if len(held):
            pins[0][held[pins[0][held] < 0]] = len(pins[1])
            pins[1].append("a row across those of another balance")
