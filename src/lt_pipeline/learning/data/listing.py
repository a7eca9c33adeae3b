"""Which images there are: a folder of class folders, or a table of paths and labels."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from glob import escape
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from lt_pipeline.learning.data.distribution import BETWEEN, label_cells
from lt_pipeline.learning.schema import MissingFileError, UserError, few

TRAIN, VALIDATION, TEST = "train", "validation", "test"
# what folders and cells say, and the part that it is
PARTS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}
CLASSES = "classes.txt"
COLUMNS = ("path", "label", "group", "split")
# of a column of labels, what may stand between several labels of one image
SEVERAL = re.compile(rf"[{BETWEEN}|]")
SEPARATORS = ",;\t"


@dataclass(frozen=True)
class Listing:
    """Images in files.

    ``table`` has a row an image: ``path`` relative to ``folder``, ``label`` (a class's index, or
    where images may have ``several``, a tuple of those that it has), ``group`` (images that must
    not be parted; the path itself where nothing is known) and ``split`` (``train``,
    ``validation``, ``test``, or empty). ``class_names`` are in label order. A ``published`` set's
    split is kept whatever its images are.
    """

    folder: Path
    table: pd.DataFrame
    class_names: tuple[str, ...]
    several: bool = False
    published: bool = False

    @property
    def by_label(self) -> pd.DataFrame:
        """Return the table with a row for each label of an image."""
        if not self.several:
            return self.table
        rows = self.table.explode("label").dropna(subset="label")
        return rows.astype({"label": "int64"})

    def tensor(self, labels: pd.Series) -> Tensor:
        """Return ``labels`` of the table as images have them, int64 ``[N]`` or uint8 ``[N, C]``."""
        if not self.several:
            return torch.tensor(labels.to_numpy(copy=True))
        flags = torch.zeros(len(labels), len(self.class_names), dtype=torch.uint8)
        for row, own in zip(flags, labels, strict=True):
            row[list(own)] = 1
        return flags

    @property
    def has_split(self) -> bool:
        """Return whether the source says which images are trained and tested on."""
        return bool((self.table["split"] != "").any())

    def files(self) -> list[Path]:
        """Return the images' files, in the table's order."""
        return [self.folder / path for path in self.table["path"]]


def list_folder(folder: Path, group: str | None = None) -> Listing:
    """Return the images in ``folder``: class folders, or such in ``train``, ``val`` and ``test``.

    Label order is that of ``classes.txt`` in it, else of all parts' folders by name. ``group`` is
    a pattern, searched for in each image's path: its first group is the image's.

    Raises:
        MissingFileError: if there is no such folder.
        UserError: if it has no class folders with images, names that differ in case only, or
            paths without the pattern.
    """
    if not folder.is_dir():
        raise MissingFileError(f"data.path: there is no folder {folder}")
    within = _folders(folder)
    parts = {PARTS[f.name.lower()]: f for f in within if f.name.lower() in PARTS}
    if len(parts) < len(within) or TRAIN not in parts:
        parts = {"": folder}
    rows = [
        (path.relative_to(folder).as_posix(), kind.name, "", part)
        for part, where in parts.items()
        for kind in _folders(where)
        for path in _images(kind)
    ]
    if not rows:
        raise UserError(
            f"data.path: {folder} has no images in folders of classes: put each class's into a "
            f"folder of its name, or set data.source=csv and data.labels to a table"
        )
    return _listing(folder, pd.DataFrame(rows, columns=list(COLUMNS)), group, folder)


def list_table(
    file: Path,
    columns: Mapping[str, str] | None = None,
    folder: Path | None = None,
    group: str | None = None,
) -> Listing:
    """Return the images that a CSV or Parquet ``file`` lists, a row each.

    Columns are ``path``, ``label`` and, where there are, ``group`` and ``split``; ``columns`` says
    what they are called there. Paths are relative to ``folder``, the file's own unless told.
    ``group`` is a column, or a pattern as in ``list_folder``. Images have several labels where one
    does, as in ``cat;dog`` or ``cat|dog``, or where there is no column of labels and two or more of
    zeros and ones, which are called as the classes; an image may then have none.

    Raises:
        MissingFileError: if there is no such file.
        UserError: if a column is missing, a row names no file, names differ in case only, or a
            file is listed twice.
    """
    read = _read_table(file)
    called = {name: (columns or {}).get(name, name) for name in COLUMNS}
    if group and group in read.columns:
        called["group"], group = group, None
    flags = _flags(read, called.values())
    several = called["label"] not in read.columns and bool(flags)
    if several:
        rows = torch.tensor((read[flags].astype(str) == "1").to_numpy())
        read = read.assign(**{str(called["label"]): label_cells(rows, flags)})
    for name in ("path", "label"):
        if called[name] not in read.columns:
            raise UserError(
                f"data.labels: {file} has no column {called[name]!r}, but "
                f"{few(map(repr, read.columns))}: say by data.columns.{name} which one it is"
            )
    there = {name: read[own] for name, own in called.items() if own in read.columns}
    table = pd.DataFrame(there).reindex(columns=list(COLUMNS)).fillna("").astype(str)
    folder = folder or file.parent
    several = several or bool(table["label"].str.contains(SEVERAL).any())
    _check_rows(table, folder, file, several)
    table["split"] = [_part(value, file) for value in table["split"]]
    return _listing(folder, table, group, file, several)


def _listing(
    folder: Path, table: pd.DataFrame, group: str | None, source: Path, several: bool = False
) -> Listing:
    own = [_labels(cell) if several else [cell] for cell in table["label"]]
    names = _label_order(folder, {name for labels in own for name in labels}, source)
    index = {name: label for label, name in enumerate(names)}
    if group:
        table["group"] = _by_pattern(table["path"], group)
    alone = table["group"] == ""
    table.loc[alone, "group"] = table.loc[alone, "path"]
    if several:
        table["label"] = [tuple(sorted({index[name] for name in labels})) for labels in own]
    else:
        table["label"] = table["label"].map(index).astype("int64")
    table = table.sort_values("path", ignore_index=True)
    return Listing(folder, table, names, several)


def _labels(cell: str) -> list[str]:
    """Return the labels that stand in a cell, which may be none."""
    return [name for part in SEVERAL.split(cell) if (name := part.strip())]


def _label_order(folder: Path, labels: Iterable[str], source: Path) -> tuple[str, ...]:
    """Return the class names in label order: the file's, which must know all, or sorted."""
    names = sorted(labels)
    same: dict[str, list[str]] = defaultdict(list)
    for name in names:
        same[name.strip().casefold()].append(name)
    twice = next((group for group in same.values() if len(group) > 1), None)
    if twice:
        raise UserError(
            f"data: the labels {few(map(repr, twice))} of {source} differ in case or blanks only: "
            f"give the class one name"
        )
    file = folder / CLASSES
    if not file.is_file():
        return tuple(names)
    listed = tuple(line for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    strange = [name for name in names if name not in listed]
    if strange:
        which = few(map(repr, strange))
        raise UserError(f"{file} does not list {which}: add a line for each class")
    return listed


def _folders(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    """Return the images in a folder and below, by path; links are followed, none twice."""
    known, seen, images = Image.registered_extensions(), set[str](), list[Path]()
    for name, below, files in os.walk(folder, followlinks=True):
        below[:] = [b for b in below if not b.startswith(".")]
        if (real := os.path.realpath(name)) in seen:
            below.clear()
            continue
        seen.add(real)
        visible = (Path(name, file) for file in files if not file.startswith("."))
        images += [path for path in visible if path.suffix.lower() in known and path.is_file()]
    return sorted(images)


def _read_table(file: Path) -> pd.DataFrame:
    if not file.is_file():
        raise MissingFileError(f"data.labels: there is no {file}")
    try:
        if file.suffix.lower() in (".parquet", ".pq"):
            return pd.read_parquet(file)
        with file.open(encoding="utf-8-sig") as lines:
            head = lines.readline()
        between = max(SEPARATORS, key=head.count)
        return pd.read_csv(file, dtype=str, keep_default_na=False, sep=between)
    except (ValueError, OSError, pd.errors.ParserError) as error:
        raise UserError(f"data.labels: {file} cannot be read as a table: {error}") from error


def _check_rows(table: pd.DataFrame, folder: Path, file: Path, several: bool) -> None:
    if not several and (table["label"] == "").any():
        raise UserError(f"data.labels: {table['path'][table['label'] == ''].iloc[0]} has no label")
    twice = table["path"].duplicated()
    if twice.any():
        path = table["path"][twice].iloc[0]
        labels = table["label"][table["path"] == path].unique()
        if len(labels) > 1:
            raise UserError(
                f"data.labels: {file} lists {path} twice, as {' and '.join(labels)}: take one row "
                f"out, or, if it has several labels, write one row with {BETWEEN.join(labels)}"
            )
        raise UserError(f"data.labels: {file} lists {path} twice: take one row out")
    missing = [path for path in table["path"] if not (folder / path).is_file()]
    if missing:
        raise UserError(_missing(missing, folder, file))


def _flags(read: pd.DataFrame, others: Iterable[str | None]) -> list[str]:
    """Return the columns of zeros and ones, each a label, none where there are not two."""
    known = [str(name) for name in read.columns if name not in {*others}]
    flags = [name for name in known if read[name].astype(str).isin(("0", "1")).all()]
    return flags if len(flags) > 1 else []


def _missing(missing: Sequence[str], folder: Path, file: Path) -> str:
    near = _nearest(folder / missing[0], folder)
    hint = f", perhaps {near.relative_to(folder) if near.is_relative_to(folder) else near}"
    return (
        f"data.labels: {len(missing)} rows of {file} name no file under {folder}; the first is "
        f"{missing[0]}{hint if near.name else ''}: correct them, or say by data.path what paths "
        f"are relative to"
    )


def _nearest(path: Path, folder: Path) -> Path:
    """Return the file that ``path`` may have meant, of its folder or below ``folder``, or none."""
    beside = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    there = {file.name.casefold(): file for file in beside}
    names = get_close_matches(path.name.casefold(), there, 1)
    elsewhere = () if names else folder.rglob(escape(path.name))
    return next((there[name] for name in names), min(elsewhere, default=Path()))


def _part(value: str, file: Path) -> str:
    if value and value.lower() not in PARTS:
        raise UserError(
            f"data.labels: the column split of {file} has {value!r}: it must be one of "
            f"{', '.join(PARTS)}"
        )
    return PARTS[value.lower()] if value else ""


def _by_pattern(paths: Iterable[str], pattern: str) -> list[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"data.group: {pattern!r} is no pattern: {error}") from None
    if not compiled.groups:
        raise UserError(f"data.group: {pattern!r} has no (...) around what names the group")
    matches = [(path, compiled.search(path)) for path in paths]
    without = [path for path, match in matches if not match]
    if without:
        raise UserError(
            f"data.group: {pattern!r} is neither a column nor in {len(without)} paths, as in "
            f"{without[0]}"
        )
    return [match[1] for _, match in matches if match]
