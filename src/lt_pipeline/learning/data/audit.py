"""What there is to know of images in files before anything is trained on them.

Facts of every file, images that are there twice or nearly so, and which groups those join.
Near-duplicates are found by perceptual hashes (imagehash's pHash, 64 bits).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from lt_pipeline.learning.data.decode import UnreadableImageError, open_rgb
from lt_pipeline.learning.data.listing import Listing
from lt_pipeline.learning.data.photos import ORDER, in_parts
from lt_pipeline.learning.data.splits import GROUPS_FOR_INTERVALS
from lt_pipeline.learning.progress import track
from lt_pipeline.learning.schema import UserError, few

# bits of 64 that two images' hashes may differ by: 10 chains most of the fish into one
NEAR = 4
# of all images, the share that a group may come to have by what looks alike
LARGEST_JOINT = 0.02
BITS = 64
Pairs = np.ndarray[tuple[int, int], np.dtype[np.int64]]


def inspect(listing: Listing, threads: int = 2) -> pd.DataFrame:
    """Return the listing's table with what each file is: a row an image.

    ``width``, ``height``, ``mode`` and ``format`` are as stored; ``bytes`` and ``pixels`` are
    SHA-256 of the file and of its image as RGB; ``near`` is the perceptual hash as a whole number;
    ``error`` says why an image cannot be read, and is empty where it can.
    """
    with ThreadPoolExecutor(threads) as pool:
        facts = list(track(pool.map(_facts, listing.files()), "reading images", len(listing.table)))
    return pd.concat([listing.table, pd.DataFrame(facts)], axis=1)


def _facts(path: Path) -> dict[str, Any]:
    import imagehash  # with the extra photos

    facts: dict[str, Any] = {"bytes": sha256(path.read_bytes()).hexdigest(), "error": ""}
    try:
        image = open_rgb(path)
        with Image.open(path) as stored:
            facts |= {"mode": stored.mode, "format": stored.format}
    except UnreadableImageError as error:
        return {**facts, "error": str(error)}
    width, height = image.size
    pixels = sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
    near = np.packbits(imagehash.phash(image).hash.flatten()).view(">u8")[0]
    return {**facts, "width": width, "height": height, "pixels": pixels, "near": int(near)}


def identical(facts: pd.DataFrame) -> Pairs:
    """Return pairs of rows with equal pixels, ``[P, 2]``: each row with the first of its kind."""
    first = facts.groupby("pixels", sort=False).ngroup().to_numpy()
    of_kind: dict[int, int] = {}
    pairs = [
        (of_kind.setdefault(int(kind), row), row) for row, kind in enumerate(first) if kind >= 0
    ]
    return _pairs((a, b) for a, b in pairs if a != b)


def near_pairs(hashes: np.ndarray[Any, np.dtype[np.uint64]], bits: int = NEAR) -> Pairs:
    """Return the pairs of ``hashes`` ``[N]`` that differ by at most ``bits``, ``[P, 2]``, i < j.

    Of two such at least one of ``bits`` + 1 parts is equal, so that only those that share a part
    are compared.
    """
    edges = np.linspace(0, BITS, bits + 2).astype(int)
    pairs: set[tuple[int, int]] = set()
    for low, high in pairwise(edges):
        mask = np.uint64(((1 << int(high - low)) - 1) << int(low))
        part = hashes & mask
        order = np.argsort(part, kind="stable")
        starts = np.flatnonzero(np.diff(part[order])) + 1
        for rows in np.split(order, starts):
            pairs.update(_close(rows, hashes, bits))
    return _pairs(sorted(pairs))


def _close(
    rows: np.ndarray[Any, np.dtype[np.int64]], hashes: np.ndarray[Any, Any], bits: int
) -> Iterator[tuple[int, int]]:
    for k, row in enumerate(rows[:-1]):
        others = rows[k + 1 :]
        near = others[np.bitwise_count(hashes[others] ^ hashes[row]) <= bits]
        yield from ((min(int(row), int(o)), max(int(row), int(o))) for o in near)


def joined_groups(
    facts: pd.DataFrame, same: Pairs, near: Pairs, most: float = LARGEST_JOINT
) -> list[str]:
    """Return the group of every row, where images that are alike were brought together.

    Equal images always join their groups. Those that look alike do within a class only, of several
    labels where they have one in common or none at all, and while what comes out has less than the
    share ``most`` of all images: they chain. A joint group has the name of its first.
    """
    names, ids = pd.factorize(facts["group"])[::-1]
    parent = _components(len(names), ids[same])
    sizes = np.bincount(parent[ids], minlength=len(names))
    labels = facts["label"].tolist()
    for a, b in [pair for pair in near.tolist() if _within(*(labels[row] for row in pair))]:
        one, other = sorted((int(parent[ids[a]]), int(parent[ids[b]])))
        if one != other and sizes[one] + sizes[other] < most * len(facts):
            parent[parent == other] = one
            sizes[one] += sizes[other]
    return [str(names[parent[k]]) for k in ids]


def _within(one: Any, other: Any) -> bool:
    """Return whether two images are of one class, or have one of several labels in common."""
    return one == other or (isinstance(one, tuple) and not {*one}.isdisjoint(other))


def _components(count: int, pairs: Pairs) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return, for each of ``count`` things, the first that pairs connect it with."""
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (count, count))
    _, component = connected_components(graph, directed=False)
    _, first = np.unique(component, return_index=True)
    named: np.ndarray[Any, np.dtype[np.int64]] = first[component]
    return named


def largest_chain(groups: Iterable[str], pairs: Pairs) -> int:
    """Return how many images the largest group would have if all ``pairs`` joined theirs."""
    ids, names = pd.factorize(np.asarray(list(groups)))
    return int(np.bincount(_components(len(names), ids[pairs])[ids]).max())


def _pairs(pairs: Iterable[tuple[int, int]]) -> Pairs:
    return np.array(list(pairs), dtype=np.int64).reshape(-1, 2)


@dataclass(frozen=True)
class Audit:
    """What was found: ``facts`` a row an image, with joined groups and parts; pairs; sentences.

    ``pairs`` has a row a pair of images that are equal or look alike: ``one``, ``other`` (paths),
    ``kind`` (``identical`` or ``near``), and whether they are of one class, or have the very same
    labels, and of one group and part.
    """

    facts: pd.DataFrame
    pairs: pd.DataFrame
    classes: pd.DataFrame
    notes: list[str]


def audit(listing: Listing, validation: float, test: float, seed: int, size: int) -> Audit:
    """Look through the listed images, bring together what must not be parted, and split the rest.

    ``size`` is what images are reduced to; ``validation`` and ``test`` are shares.

    Raises:
        UserError: if no image can be read, or a given split is wrong.
    """
    facts = inspect(listing, threads=os.cpu_count() or 1)
    broken = facts[facts["error"] != ""]
    facts = facts[facts["error"] == ""].reset_index(drop=True)
    if facts.empty:
        raise UserError(
            f"data: none of {len(broken)} images can be read: {broken['error'].iloc[0]}"
        )
    same, near = identical(facts), near_pairs(facts["near"].to_numpy(np.uint64))
    pairs = _pair_table(facts, same, near)
    if not listing.has_split:
        facts["group"] = joined_groups(facts, same, near)
    parts = in_parts(replace(listing, table=facts), validation, test, seed)
    facts = parts.table
    split = facts.set_index("path")["split"]
    pairs["same_part"] = pairs["one"].map(split) == pairs["other"].map(split)
    classes = class_table(parts.by_label, listing.class_names)
    return Audit(facts, pairs, classes, _notes(facts, broken, pairs, classes, size))


def class_table(facts: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return a row a class: its images and groups, in all and in each part.

    ``facts`` have a row a label, where images have several.
    """
    rows = []
    for label, name in enumerate(names):
        own = facts[facts["label"] == label]
        row: dict[str, Any] = {
            "class": name,
            "images": len(own),
            "groups": own["group"].nunique(),
            "largest_group": int(own["group"].value_counts().max()) if len(own) else 0,
        }
        for part in ORDER:
            inside = own[own["split"] == part]
            row |= {part: len(inside), f"{part}_groups": inside["group"].nunique()}
        rows.append(row)
    return pd.DataFrame(rows)


def _pair_table(facts: pd.DataFrame, same: Pairs, near: Pairs) -> pd.DataFrame:
    equal = facts["pixels"].to_numpy()
    kinds = [("identical", same), ("near", near[equal[near[:, 0]] != equal[near[:, 1]]])]
    rows = [
        {
            "one": facts["path"][a],
            "other": facts["path"][b],
            "kind": kind,
            "same_class": facts["label"][a] == facts["label"][b],
            "same_group": facts["group"][a] == facts["group"][b],
        }
        for kind, pairs in kinds
        for a, b in pairs.tolist()
    ]
    return pd.DataFrame(rows, columns=["one", "other", "kind", "same_class", "same_group"])


def _notes(
    facts: pd.DataFrame, broken: pd.DataFrame, pairs: pd.DataFrame, classes: pd.DataFrame, size: int
) -> list[str]:
    """Return what a person must know before training, a sentence each."""
    counts = classes["images"][classes["images"] > 0]
    notes = [
        f"{len(facts)} images of {len(counts)} classes, {counts.max()} to {counts.min()} a class "
        f"(imbalance ratio {counts.max() / counts.min():.3g}), in {facts['group'].nunique()} groups"
    ]
    if isinstance(facts["label"].iloc[0], tuple):
        labels = facts["label"].map(len)
        none = (labels == 0).sum()
        notes.append(f"{labels.mean():.3g} labels an image, and {none} images without one")
    if len(broken):
        notes.append(f"{len(broken)} files cannot be read: {few(broken['path'])}")
    for kind, what in (("identical", "identical images"), ("near", "images that look alike")):
        own = pairs[pairs["kind"] == kind]
        if len(own):
            within, across = own["same_group"].sum(), (~own["same_class"]).sum()
            notes.append(
                f"pairs of {what}: {len(own)} ({within} within a group, {across} across classes)"
            )
        parted = own[~own["same_part"]]
        if len(parted):
            notes.append(
                f"{len(parted)} pairs of {what} are in two parts, so that what is learned is "
                f"tested on, as {parted['one'].iloc[0]} and {parted['other'].iloc[0]}"
            )
    return [*notes, *_of_classes(facts, pairs, classes, size)]


def _of_classes(
    facts: pd.DataFrame, pairs: pd.DataFrame, classes: pd.DataFrame, size: int
) -> list[str]:
    """Return what is to be known of labels, sizes and what is tested."""
    notes = []
    conflicts = pairs[(pairs["kind"] == "identical") & ~pairs["same_class"]]
    if len(conflicts):
        first = conflicts.iloc[0]
        notes.append(
            f"{len(conflicts)} pairs of identical images differ in their labels, as "
            f"{first['one']} and {first['other']}"
        )
    small = facts[facts[["width", "height"]].min(axis=1) < size]
    if len(small):
        notes.append(f"{len(small)} images have a side below {size} pixels and are made larger")
    untested = classes["class"][(classes["images"] > 0) & (classes["test"] == 0)]
    if len(untested):
        notes.append(f"learned, but not tested, being in one group: {few(untested)}")
    scarce = classes["class"][classes["test_groups"].between(1, GROUPS_FOR_INTERVALS - 1)]
    if len(scarce):
        notes.append(
            f"{len(scarce)} classes are tested on fewer than {GROUPS_FOR_INTERVALS} groups, too "
            f"few for an interval: {few(scarce)}"
        )
    return notes
