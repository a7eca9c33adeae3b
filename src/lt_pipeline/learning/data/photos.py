"""Images in files as training set, hold-out and test set: split, decoded once, and labelled."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b, sha256
from pathlib import Path

import pandas as pd
import torch

from lt_pipeline.learning.data.decode import Fit
from lt_pipeline.learning.data.listing import FEW, PARTS, TEST, TRAIN, VALIDATION, Listing
from lt_pipeline.learning.data.packed import Mapped, PackedImages, mapped, pack
from lt_pipeline.learning.data.sources import Source
from lt_pipeline.learning.data.splits import split_groups
from lt_pipeline.learning.schema import UserError

LOGGER = logging.getLogger(__name__)
ORDER = (TRAIN, VALIDATION, TEST)


def in_parts(
    listing: Listing, validation: float, test: float, seed: int, rare: str = "train"
) -> Listing:
    """Return ``listing`` with a part for each image: its own, which are checked, or by groups.

    ``rare`` says what becomes of classes that are in one group: ``train``, or ``drop``.

    Raises:
        UserError: if a given split has images without a part, parts a group, or leaves a class
            without images to train or to test on where it has groups for both.
    """
    if listing.has_split:
        _check_split(listing)
        return listing
    if rare == "drop":
        listing = _without_rare(listing)
    shares = {TRAIN: 1 - validation - test, VALIDATION: validation, TEST: test}
    shares = {part: share for part, share in shares.items() if share > 0}
    table = listing.table
    parts = split_groups(table["label"].tolist(), table["group"].tolist(), shares, seed)
    return replace(listing, table=table.assign(split=parts))


def _without_rare(listing: Listing) -> Listing:
    groups = listing.table.groupby("label")["group"].nunique()
    kept = [label for label in range(len(listing.class_names)) if groups.get(label, 0) > 1]
    if not kept:
        raise UserError(
            "data.rare=drop leaves no class: each is in one group; set data.group to what tells "
            "groups apart, or data.rare to train"
        )
    table = listing.table[listing.table["label"].isin(kept)].reset_index(drop=True)
    table["label"] = table["label"].map({old: new for new, old in enumerate(kept)})
    return replace(listing, table=table, class_names=tuple(listing.class_names[k] for k in kept))


def _check_split(listing: Listing) -> None:
    table, names = listing.table, listing.class_names
    without = table["path"][table["split"] == ""]
    if len(without):
        raise UserError(
            f"data: {len(without)} images have no part in the given split, as {without.iloc[0]}: "
            f"it must be one of {', '.join(dict.fromkeys(PARTS.values()))}"
        )
    parted = table.groupby("group")["split"].unique()
    parted = parted[parted.map(len) > 1]
    if len(parted):
        raise UserError(
            f"data: the given split parts {len(parted)} groups: {parted.index[0]} is in "
            f"{' and '.join(parted.iloc[0])}; what is learned would be tested on: move it to one"
        )
    groups = table.groupby("label")["group"].nunique()
    for part, least in ((TRAIN, 1), (TEST, 2)):
        has = set(table["label"][table["split"] == part])
        lacking = [
            name for c, name in enumerate(names) if groups.get(c, 0) >= least and c not in has
        ]
        if lacking:
            raise UserError(
                f"data: the given split has no {part} images of {', '.join(lacking[:3])}: move a "
                f"group of it there, or leave the class out"
            )


def as_source(listing: Listing, cache: Path, size: int, fit: Fit, skip: bool) -> Source:
    """Return the listed images, decoded once into a file of their own in the folder ``cache``.

    Raises:
        UserError: naming the first file that is unreadable, unless those are to be ``skip``-ped.
    """
    file = cache / f"{_key(listing, size, fit)}.npy"
    unreadable = _packed(listing.files(), file, size, fit)
    if unreadable and not skip:
        why = next(iter(unreadable.values()))
        raise UserError(
            f"data: {len(unreadable)} of {len(listing.table)} images cannot be read; the first: "
            f"{why}. Mend or remove them, or set data.unreadable=skip"
        )
    table = listing.table.drop(index=list(unreadable))
    _check_content(table, mapped(file))
    parts = [table[table["split"] == part] for part in ORDER]
    array = mapped(file)
    train, validation, test = (
        PackedImages(
            array,
            torch.tensor(part.index.to_numpy(copy=True)),
            torch.tensor(part["label"].to_numpy(copy=True)),
            listing.class_names,
        )
        for part in parts
    )
    rows = table.assign(**{"class": [listing.class_names[label] for label in table["label"]]})
    return Source(train, test, validation, rows)


def _check_content(table: pd.DataFrame, images: Mapped) -> None:
    """Refuse images in two parts whose pixels are equal; a row's index is its place in ``images``.

    Raises:
        UserError: naming two.
    """
    content = [blake2b(images[row].data, digest_size=16).digest() for row in table.index]
    parted = table["split"].groupby(content).transform("nunique") > 1
    if parted.any():
        first = int(parted.argmax())
        alike = table[[digest == content[first] for digest in content]]
        one, other = (row for _, row in alike.drop_duplicates("split").head(2).iterrows())
        raise UserError(
            f"data: {parted.sum()} images are in two parts, as {one['path']} in {one['split']} and "
            f"{other['path']} in {other['split']}, whose pixels are equal: what is learned would "
            f"be tested on. Take one out or move both to one part, as kedro run --pipelines=audit "
            f"does where there is no split"
        )


def say_untested(listing: Listing) -> None:
    """Log which classes are learned only, as all their images are one or one group."""
    table = listing.table
    of_class = table.groupby("label")["group"].nunique()
    tested = set(table["label"][table["split"] == TEST])
    alone = [
        name
        for label, name in enumerate(listing.class_names)
        if of_class.get(label, 0) == 1 and label not in tested
    ]
    if alone:
        names = ", ".join(alone[:FEW])
        more = f" and {len(alone) - FEW} more" if len(alone) > FEW else ""
        LOGGER.warning(
            "Learned and not tested, being one image or one group: %s%s; more of another group "
            "would do, or data.rare=drop, or a split without them",
            *(names, more),
        )


def _packed(files: Sequence[Path], file: Path, size: int, fit: Fit) -> dict[int, str]:
    """Decode ``files`` into ``file`` unless they are there; return why which cannot be read."""
    notes = file.with_suffix(".json")
    if file.is_file() and notes.is_file():
        return {int(k): why for k, why in json.loads(notes.read_text()).items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    unreadable = pack(files, file, size, fit, threads=os.cpu_count() or 1)
    notes.write_text(json.dumps(unreadable))
    return unreadable


def _key(listing: Listing, size: int, fit: Fit) -> str:
    """Return what the decoded images depend on: which files, as they are now, and how."""
    digest = sha256(f"{size} {fit}".encode())
    for path, file in zip(listing.table["path"], listing.files(), strict=True):
        stat = file.stat()
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:16]
