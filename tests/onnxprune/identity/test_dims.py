"""Channels and Dims from ties written down by hand."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.identity.channels import components, join
from onnxprune.identity.dims import Dims, find_dims
from onnxprune.identity.fields import Field, along
from onnxprune.identity.ties import Pin, Source, Ties


def weight(ties: Ties, name: str, *lengths: int) -> list[np.ndarray]:
    """A weight with fresh identities on each axis; they are returned."""
    made = []
    for length in lengths:
        made.append(np.arange(ties.count, ties.count + length))
        ties.count += length
    fields = tuple(along(ids, a, len(lengths)) for a, ids in enumerate(made))
    ties.sources[(name, 1)] = Source(fields, name)
    return made


def widths(dims: Dims) -> list[tuple[str, list[int]]]:
    return [(d.name, [len(p) for p in d.parts]) for d in dims.dims]


def test_nothing_is_nothing() -> None:
    """A graph without weights has no Dims."""
    dims = find_dims(Ties())
    assert (dims.count, dims.dims, dims.free, dims.children) == (0, (), (), {})
    assert list(components(3, [])) == [0, 1, 2]


def test_equal_identities_are_one_channel() -> None:
    """Rows of one weight that are columns of another form a Dim, named after what makes them."""
    ties = Ties()
    rows, _ = weight(ties, "makes", 4, 2)
    _, columns = weight(ties, "reads", 3, 4)
    ties.pairs.append((rows, columns))
    dims = find_dims(ties)
    assert dims.count == 4 + 2 + 3
    assert widths(dims)[0] == ("makes", [4])
    assert np.array_equal(dims.of[rows], dims.of[columns])
    assert dims.dim_of[dims.of[rows[0]]] == dims.dims[0].index
    assert dims.dims[0].levels.ravel().tolist() == [1, 2, 3, 4]


def test_channels_that_occur_otherwise_are_other_dims() -> None:
    """A weight that reads some of the channels tells them apart."""
    ties = Ties()
    [rows] = weight(ties, "makes", 6)
    [part] = weight(ties, "reads", 2)
    ties.pairs.append((rows[:2], part))
    assert widths(find_dims(ties)) == [("makes", [2]), ("makes#2", [4])]


def test_a_tensor_of_its_own_tells_channels_apart() -> None:
    """Some of what it holds must stay, so it has a width."""
    ties = Ties()
    [rows] = weight(ties, "makes", 6)
    ties.parts.append(rows[:2])
    assert widths(find_dims(ties)) == [("makes", [2]), ("makes#2", [4])]


@pytest.mark.parametrize("soft", [False, True])
def test_a_reason_holds_the_whole_dim_and_its_rows(soft: bool) -> None:
    """A row with a channel that cannot go cannot go; the first reason is told."""
    ties = Ties()
    [heads] = weight(ties, "heads", 2)
    [flat] = weight(ties, "flat", 6)
    ties.links.append((np.repeat(heads, 3), flat))
    marks = ties.approximate if soft else ties.pins
    marks += [Pin(flat, "because"), Pin(flat[:3], "also")]
    dims = find_dims(ties)
    said = {d.name: d.approximate if soft else d.pinned for d in dims.dims}
    assert said == {"heads": "because", "flat": "because"}
    assert len(dims.free) == (2 if soft else 0)
    assert all(d.is_exact != soft for d in dims.dims)


def test_rows_keep_equal_counts() -> None:
    """A joint field makes one Dim of all its rows, with a level for each count."""
    ties = Ties()
    [flat] = weight(ties, "flat", 6)
    ties.joints.append(flat.reshape(2, 3))
    [dim] = find_dims(ties).dims
    assert (dim.rows, dim.size) == (2, 3)
    assert dim.levels.tolist() == [[1, 1], [2, 2], [3, 3]]


def test_rows_that_are_a_channel_each_go_alone() -> None:
    """Pixels of a channel are all gone or none: the others keep what they have."""
    ties = Ties()
    [flat] = weight(ties, "flat", 6)
    table = flat.reshape(1, 3, 2)
    ties.pairs.append((table, np.broadcast_to(table[..., :1], table.shape)))
    ties.pairs = [(a.ravel(), b.ravel()) for a, b in ties.pairs]
    ties.joints.append(table)
    [dim] = find_dims(ties).dims
    assert (dim.rows, dim.size) == (1, 3)


def test_parents_and_children() -> None:
    """A head is the parent of its positions; heads that share one go together."""
    ties = Ties()
    [heads] = weight(ties, "heads", 2)
    [flat] = weight(ties, "flat", 6)
    ties.joints.append(flat.reshape(2, 3))
    ties.links.append((np.repeat(heads, 3), flat))
    dims = find_dims(ties)
    assert {k: len(v) for k, v in dims.children.items()} == dict.fromkeys(dims.of[heads], 3)
    assert [d.parents for d in dims.dims if d.name == "flat"] == [tuple(dims.of[heads])]
    ties.links.append((heads[:1], flat[3:4]))
    of, _ = join(ties)
    assert of[heads[0]] == of[heads[1]]


def test_a_row_of_one_channel_is_that_channel() -> None:
    """What is gone exactly if one thing is gone is no other thing."""
    ties = Ties()
    [heads] = weight(ties, "heads", 2)
    [flat] = weight(ties, "flat", 2)
    ties.links.append((heads, flat))
    of, links = join(ties)
    assert np.array_equal(of[heads], of[flat])
    assert links.size == 0


def test_a_row_across_other_rows_is_held() -> None:
    """It would leave the rows of the other balance uneven."""
    ties = Ties()
    [heads] = weight(ties, "heads", 2)
    [flat] = weight(ties, "flat", 12)
    table = flat.reshape(4, 3)
    ties.joints += [table, table.reshape(2, 6)[:, [0, 1, 2, 3, 4, 5]]]
    rows = np.concatenate([flat[:5], flat[[11]], flat[5:11]])
    ties.links.append((np.repeat(heads, 6), rows))
    dims = find_dims(ties)
    assert {d.pinned for d in dims.dims if d.name.startswith("heads")} == {
        "a row across those of another balance"
    }


def test_rows_that_lie_evenly_in_others_may_go() -> None:
    """Heads of a packed (3, heads, size) take as much from each of the three."""
    ties = Ties()
    [heads] = weight(ties, "heads", 2)
    [flat] = weight(ties, "flat", 24)
    packed = flat.reshape(3, 2, 4)
    ties.joints += [packed, packed.reshape(3, 8)]
    ties.links.append((np.broadcast_to(heads[None, :, None], packed.shape).ravel(), flat))
    dims = find_dims(ties)
    assert [d.name for d in dims.free] == ["heads", "flat"]


def test_woven_rows_with_crossed_channels_are_one() -> None:
    """A channel at two places of rows laid into one another would change their order."""
    ties = Ties()
    [flat] = weight(ties, "flat", 6)
    rows = flat.reshape(2, 3)
    ties.weaves.append(rows)
    assert len(set(join(ties)[0])) == 6
    ties.pairs.append((rows[0], np.roll(rows[1], 1)))
    assert len(set(join(ties)[0])) == 1
    ties.pairs = [(rows[0], rows[1])]
    assert len(set(join(ties)[0])) == 3


def test_a_dim_without_a_weight_is_named_after_its_node() -> None:
    """Positions that a Pad adds belong to no weight."""
    ties = Ties(count=2)
    ties.sources[("pad", "after")] = Source((Field(np.arange(2), (0,), 0),))
    assert [d.name for d in find_dims(ties).dims] == ["pad after"]
