"""Images in files as training set, hold-out and test set: split, decoded once, and labelled."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lt_pipeline.learning.data.decode import Fit
from lt_pipeline.learning.data.distribution import label_cells
from lt_pipeline.learning.data.listing import PARTS, TEST, TRAIN, VALIDATION, Listing
from lt_pipeline.learning.data.packed import PackedImages, mapped, pack
from lt_pipeline.learning.data.protocol import digests
from lt_pipeline.learning.data.sources import Source
from lt_pipeline.learning.data.splits import fold_groups, split_groups
from lt_pipeline.learning.data.stratify import stratify, thinned
from lt_pipeline.learning.schema import UserError, few

LOGGER = logging.getLogger(__name__)
ORDER = (TRAIN, VALIDATION, TEST)
# the column of an image's fold, and what it says of one that is learned in all of them
FOLD, ALWAYS = "fold", -1


def in_parts(
    listing: Listing, validation: float, test: float, seed: int, rare: str = "train"
) -> Listing:
    """Return ``listing`` with a part for each image: its own, which are checked, or by groups.

    ``rare`` says what becomes of classes that are in one group: ``train``, or ``drop``. Images of
    several labels are split by iterative stratification. Of a published set's training images the
    share ``validation`` is held out.

    Raises:
        UserError: if a given split has images without a part, parts a group, or leaves a class
            without images to train or to test on where it has groups for both.
    """
    if listing.has_split:
        _check_split(listing)
        return _held_out(listing, validation, seed) if listing.published else listing
    if rare == "drop":
        listing = _without_rare(listing)
    fractions = {TRAIN: 1 - validation - test, VALIDATION: validation, TEST: test}
    fractions = {part: fraction for part, fraction in fractions.items() if fraction > 0}
    parts = _by_fractions(listing.table, listing.several, fractions, seed)
    return replace(listing, table=listing.table.assign(split=parts))


def _by_fractions(
    table: pd.DataFrame, several: bool, fractions: Mapping[str, float], seed: int
) -> list[str]:
    """Return the part of each row of ``table``, of the names in ``fractions``."""
    given = table["label"].tolist(), table["group"].tolist()
    if not several:
        return split_groups(*given, fractions, seed)
    names = list(fractions)
    return [names[part] for part in stratify(*given, list(fractions.values()), seed)]


def _held_out(listing: Listing, fraction: float, seed: int) -> Listing:
    """Return ``listing`` with a ``fraction`` of its training images as the hold-out."""
    table, learned = listing.table.copy(), listing.table["split"] == TRAIN
    if fraction:
        fractions = {TRAIN: 1 - fraction, VALIDATION: fraction}
        table.loc[learned, "split"] = _by_fractions(
            table[learned], listing.several, fractions, seed
        )
    return replace(listing, table=table)


def with_long_tail(listing: Listing, imbalance_ratio: float, seed: int) -> Listing:
    """Return ``listing`` without the images to train on that a long tail has no room for.

    Raises:
        UserError: if a class would keep no image.
    """
    learned = listing.table["split"] == TRAIN
    own = listing.table["label"][learned]
    labels = own.tolist() if listing.several else [(label,) for label in own]
    stays = np.ones(len(listing.table), dtype=bool)
    stays[learned] = thinned(labels, len(listing.class_names), imbalance_ratio, seed)
    return replace(listing, table=listing.table[stays].reset_index(drop=True))


def in_folds(
    listing: Listing, folds: int, seed: int, rare: str = "train", made: bool = False
) -> Listing:
    """Return ``listing`` with the column ``fold``: the one that tests the image, by groups.

    A class of one group is tested in none, and learned in each with all that its group holds:
    -1; ``rare`` is as in ``in_parts``. A split that is there is left aside where it was ``made``.
    Images of several labels are parted by iterative stratification.

    Raises:
        UserError: if a split is given, or a fold would lack images to learn, choose by or test
            on, or test a class that it does not learn.
    """
    if listing.has_split and not made:
        raise UserError(
            "data.folds makes its own parts, but these images have a split of their own: leave "
            "data.folds out to use it, or set data.split=made if its test images may be learned"
        )
    if listing.has_split:
        LOGGER.info("data.folds=%d parts groups anew: the split that is there is left aside", folds)
    if rare == "drop":
        listing = _without_rare(listing)
    table, by_label = listing.table, listing.by_label
    alone = by_label.groupby("label")["group"].transform("nunique") == 1
    always = table["group"].isin(by_label["group"][alone])
    rest, fold = table[~always], np.full(len(table), ALWAYS)
    if len(rest):
        given = rest["label"].tolist(), rest["group"].tolist()
        equal = [1 / folds] * folds
        fold[~always] = (
            stratify(*given, equal, seed) if listing.several else fold_groups(*given, folds, seed)
        )
    if alone.any():
        names = [listing.class_names[label] for label in sorted(set(by_label["label"][alone]))]
        LOGGER.warning(
            "learned in every fold and tested in none, being in one group: %s", ", ".join(names)
        )
    made_of = replace(listing, table=table.assign(**{FOLD: fold}))
    for k in range(folds):
        _check_fold(of_fold(made_of, folds, k), k, folds)
    return made_of


def of_fold(listing: Listing, folds: int, fold: int) -> Listing:
    """Return what ``in_folds`` gave, parted: ``fold`` tests, the next one validates.

    Where all of a class that is not tested on would be chosen by, its groups are learned.
    """
    table, by_label = listing.table, listing.by_label
    validates = (fold + 1) % folds
    tested, held = table[FOLD] == fold, table[FOLD] == validates
    learned = by_label["label"][~by_label[FOLD].isin((fold, validates))]
    unlearned = ~by_label["label"].isin(learned) & (by_label[FOLD] == validates)
    held &= ~table["group"].isin(by_label["group"][unlearned])
    parts = np.select([tested, held], [TEST, VALIDATION], TRAIN)
    return replace(listing, table=table.assign(split=parts))


def _check_fold(listing: Listing, fold: int, folds: int) -> None:
    table, groups = listing.table, listing.table["group"].nunique()
    lacking = [part for part in ORDER if not (table["split"] == part).any()]
    if lacking:
        raise UserError(
            f"data.folds is {folds}, but fold {fold} has no {lacking[0]} images, as there are "
            f"{groups} groups: choose fewer folds"
        )
    by_label = listing.by_label
    learned = set(by_label["label"][by_label["split"] == TRAIN])
    strange = sorted(set(by_label["label"]) - learned)
    if strange:
        raise UserError(
            f"data.folds: fold {fold} of {folds} would test {listing.class_names[strange[0]]} "
            f"without having learned it, as all of its groups are there: choose another data.seed "
            f"or number of folds"
        )


def _without_rare(listing: Listing) -> Listing:
    """Return ``listing`` without the classes of one group, and what shows nothing else."""
    groups = listing.by_label.groupby("label")["group"].nunique()
    kept = [label for label in range(len(listing.class_names)) if groups.get(label, 0) > 1]
    if not kept:
        raise UserError(
            "data.rare=drop leaves no class: each is in one group; set data.group to what tells "
            "groups apart, or data.rare to train"
        )
    number, names = {old: new for new, old in enumerate(kept)}, listing.class_names
    if listing.several:
        had = listing.table["label"]
        has = had.map(lambda own: tuple(number[c] for c in own if c in number))
        # one that had no label is still an image of none
        stays = (has.map(len) > 0) | (had.map(len) == 0)
    else:
        has = listing.table["label"].map(number)
        stays = has.notna()
    table = listing.table.assign(label=has)[stays].reset_index(drop=True)
    table = table if listing.several else table.astype({"label": "int64"})
    return replace(listing, table=table, class_names=tuple(names[k] for k in kept))


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
    table = listing.by_label
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
    groups, names = table["group"].factorize()
    whole = PackedImages(
        mapped(file),
        torch.tensor(table.index.to_numpy(copy=True)),
        listing.tensor(table["label"]),
        listing.class_names,
        torch.from_numpy(groups) if len(names) < len(table) else None,
    )
    _check_content(table, whole, listing.published)
    train, validation, test = (
        whole[torch.tensor((table["split"] == part).to_numpy(copy=True))] for part in ORDER
    )
    rows = table.assign(**{"class": label_cells(whole.labels, listing.class_names)})
    return Source(train, test, validation, rows)


def _check_content(table: pd.DataFrame, images: PackedImages, published: bool) -> None:
    """Refuse ``images``, a row each, whose pixels are equal and that are in two parts.

    Of a ``published`` split, which numbers of others are of, they are only named.

    Raises:
        UserError: naming two.
    """
    content = digests(images)
    parted = table["split"].groupby(content).transform("nunique") > 1
    if parted.any():
        first = int(parted.argmax())
        alike = table[[digest == content[first] for digest in content]]
        one, other = (row for _, row in alike.drop_duplicates("split").head(2).iterrows())
        fault = (
            f"{parted.sum()} images are in two parts, as {one['path']} in {one['split']} and "
            f"{other['path']} in {other['split']}, whose pixels are equal"
        )
        if published:
            LOGGER.warning("%s: the published split is kept as it is", fault)
            return
        raise UserError(
            f"data: {fault}: what is learned would be tested on. Take one out or move both to one "
            f"part, as kedro run --pipelines=audit does where there is no split"
        )


def say_untested(listing: Listing) -> None:
    """Log which classes are learned only, as all their images are one or one group."""
    table = listing.by_label
    of_class = table.groupby("label")["group"].nunique()
    tested = set(table["label"][table["split"] == TEST])
    alone = [
        name
        for label, name in enumerate(listing.class_names)
        if of_class.get(label, 0) == 1 and label not in tested
    ]
    if alone:
        LOGGER.warning(
            "Learned and not tested, being one image or one group: %s; more of another group "
            "would do, or data.rare=drop, or a split without them",
            few(alone),
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
