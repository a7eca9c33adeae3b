"""Published sets of images with several labels, read from the files that they are published as.

Each becomes the listing that a table would be: a path, the labels and the published part of every
image; what is trained on is the set's own training part, and its test part tests.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pandas as pd

from lt_pipeline.learning.data.listing import COLUMNS, TEST, TRAIN, Listing
from lt_pipeline.learning.schema import MissingFileError, UserError

LOGGER = logging.getLogger(__name__)
# Everingham et al. 2010, in the order of the devkit's own lists
VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
# of NUS-WIDE: the image list and the labels of a concept, as the whole set's archives name them and
# as that of the subset of scenes does
NUS_WIDE = (
    ("ImageList/{part}Imagelist.txt", "Groundtruth/TrainTestLabels/Labels_{concept}_{part}.txt"),
    ("image list/{part}_imageOutPutFileList.txt", "ground truth/{part}_Labels_{concept}.txt"),
)
NUS_WIDE_IMAGES = "Flickr"


class Row(NamedTuple):
    """An image: where it is below the set's folder, its labels by name, and its part."""

    path: str
    labels: Iterable[str]
    part: str


class Read(NamedTuple):
    """What a reader found: the classes in label order, and the images."""

    class_names: Sequence[str]
    rows: list[Row]


def read_layout(name: str, folder: Path, difficult: bool | None, skip: bool) -> Listing:
    """Return the images of the published set ``name`` below ``folder``, with the split it has.

    Pascal's ``difficult`` objects give a label or not, None as the set itself has it. Images that
    are listed and not there are left out where they are to be ``skip``-ped.

    Raises:
        MissingFileError: if a list, an annotation or an image is not there.
        UserError: naming the file that is damaged, or says what no other knows.
    """
    if not folder.is_dir():
        raise MissingFileError(f"data.path: there is no folder {folder}")
    names, rows = LAYOUTS[name](folder, difficult)
    rows = _there(folder, rows, skip)
    place = {label: k for k, label in enumerate(names)}
    table = pd.DataFrame(
        [
            (row.path, tuple(sorted({place[n] for n in row.labels})), row.path, row.part)
            for row in rows
        ],
        columns=list(COLUMNS),
    ).sort_values("path", ignore_index=True)
    return Listing(folder, table, tuple(names), several=True, published=True)


def _there(folder: Path, rows: list[Row], skip: bool) -> list[Row]:
    """Return the ``rows`` whose images are there, which all must be unless told to ``skip``."""
    there = [row for row in rows if (folder / row.path).is_file()]
    missing = len(rows) - len(there)
    if not missing:
        return rows
    kept = {row.path for row in there}
    first = next(row.path for row in rows if row.path not in kept)
    problem = f"{missing} of {len(rows)} listed images are not in {folder}, as {first}"
    if not (skip and there):
        raise MissingFileError(
            f"data.path: {problem}: put them there, or set data.unreadable=skip to do without"
        )
    LOGGER.warning("%s: they are left out", problem)
    return there


def _lines(file: Path) -> list[str]:
    """Return the lines of a list that are not empty."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingFileError(f"data.path: there is no {file}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.path: {file} cannot be read as a list: {error}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"data.path: {file} lists nothing: it is empty, or was cut off")
    return lines


# ---- Pascal VOC


def _voc_reader(
    parts: Mapping[str, tuple[str, str]], counts: bool
) -> Callable[[Path, bool | None], Read]:
    """Return the reader of ``parts``, each a year's folder and the list of its images.

    Difficult objects give a label where it ``counts`` them, unless told.
    """

    def read(folder: Path, difficult: bool | None) -> Read:
        counted = counts if difficult is None else difficult
        rows = [
            Row(
                f"{year}/JPEGImages/{number}.jpg",
                _objects(folder / year / "Annotations" / f"{number}.xml", counted),
                part,
            )
            for part, (year, listed) in parts.items()
            for number in _lines(folder / listed)
        ]
        return Read(VOC, rows)

    return read


def _objects(file: Path, difficult: bool) -> set[str]:
    """Return which classes an annotation has objects of."""
    try:
        root = ElementTree.parse(file).getroot()
    except FileNotFoundError:
        raise MissingFileError(f"data.path: there is no {file}") from None
    except (ElementTree.ParseError, OSError) as error:
        raise UserError(f"data.path: {file} is damaged: {error}") from error
    objects = root.findall("object")
    strange = sorted({element.findtext("name", "") for element in objects} - {*VOC})
    if strange:
        raise UserError(f"data.path: {file} has an object {strange[0]!r}, which is no class of VOC")
    return {
        element.findtext("name", "")
        for element in objects
        if difficult or element.findtext("difficult", "0").strip() != "1"
    }


# ---- MS-COCO


def _coco_reader(year: str, learned: str | None = None) -> Callable[[Path, bool | None], Read]:
    """Return the reader of a ``year``; of its training images those whose numbers are ``learned``.

    The classes are in the order of their numbers, in which there are gaps.
    """

    def read(folder: Path, difficult: bool | None) -> Read:
        names, rows = list[str](), list[Row]()
        for part, split in ((TRAIN, "train"), (TEST, "val")):
            file = folder / "annotations" / f"instances_{split}{year}.json"
            instances = _instances(file)
            if names and instances.names != names:
                raise UserError(f"data.path: {file} has other categories than the training images")
            names, images = instances.names, instances.images
            if learned and part == TRAIN:
                images = dict(_chosen(images, folder / learned, file))
            rows += [Row(f"{split}{year}/{name}", own, part) for name, own in images.values()]
        return Read(names, rows)

    return read


class _Instances(NamedTuple):
    """A file of instances: the categories' names, and file and labels of an image by its number."""

    names: list[str]
    images: dict[int, tuple[str, set[str]]]


def _instances(file: Path) -> _Instances:
    """Return what a file of instances says; a crowd is an instance, too."""
    try:
        read = json.loads(file.read_bytes())
        categories = {int(c["id"]): str(c["name"]) for c in read["categories"]}
        images = {int(i["id"]): (str(i["file_name"]), set[str]()) for i in read["images"]}
        for annotation in read["annotations"]:
            images[annotation["image_id"]][1].add(categories[annotation["category_id"]])
    except FileNotFoundError:
        raise MissingFileError(f"data.path: there is no {file}") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"data.path: {file} is damaged, or no file of instances: {why}") from error
    return _Instances([categories[number] for number in sorted(categories)], images)


def _chosen(images: Mapping[int, Any], listed: Path, file: Path) -> Iterator[tuple[int, Any]]:
    """Yield those of ``images``, read from ``file``, whose numbers are ``listed``."""
    for line in _lines(listed):
        if not line.isdecimal() or int(line) not in images:
            raise UserError(f"data.path: {listed} lists {line!r}, which is no image of {file}")
        yield int(line), images[int(line)]


# ---- NUS-WIDE


def _nus_wide(folder: Path, difficult: bool | None) -> Read:
    """Return the images of NUS-WIDE or a subset, whose concepts are those that have labels."""
    listed, labelled = next(
        (way for way in NUS_WIDE if (folder / way[0].format(part="Train")).is_file()), NUS_WIDE[0]
    )
    concepts = _concepts(folder, labelled)
    rows = list[Row]()
    for part, word in ((TRAIN, "Train"), (TEST, "Test")):
        images = _lines(folder / listed.format(part=word))
        own = [set[str]() for _ in images]
        for concept in concepts:
            file = folder / labelled.format(concept=concept, part=word)
            for labels, flag in zip(own, _flags(file, len(images)), strict=True):
                if flag == "1":
                    labels.add(concept)
        paths = (f"{NUS_WIDE_IMAGES}/{line.replace(chr(92), '/')}" for line in images)
        rows += [Row(path, labels, part) for path, labels in zip(paths, own, strict=True)]
    return Read(concepts, rows)


def _concepts(folder: Path, labelled: str) -> list[str]:
    """Return the names of the concepts, sorted: the list's, or those that files are called by."""
    lists = sorted((folder / "ConceptsList").glob("*.txt"))
    if lists:
        return sorted(_lines(lists[0]))
    pattern = labelled.format(concept="*", part="Train")
    before, after = (len(end) for end in Path(pattern).name.split("*"))
    names = sorted(file.name[before : len(file.name) - after] for file in folder.glob(pattern))
    if not names:
        raise MissingFileError(f"data.path: there is no {folder / pattern}, which has the labels")
    return names


def _flags(file: Path, images: int) -> list[str]:
    """Return the zeros and ones of a concept, a line an image."""
    lines = _lines(file)
    strange = next((line for line in lines if line not in ("0", "1")), None)
    if strange is not None:
        raise UserError(f"data.path: {file} has {strange!r} where 0 or 1 must be")
    if len(lines) != images:
        raise UserError(f"data.path: {file} has {len(lines)} lines, and {images} images are listed")
    return lines


VOC_TEST = ("VOC2007", "VOC2007/ImageSets/Main/test.txt")
# longtail2012 and longtail2017 are the lists of Wu et al. 2020, as their code has them; it gives
# difficult objects a label
LAYOUTS: dict[str, Callable[[Path, bool | None], Read]] = {
    "voc2007": _voc_reader(
        {TRAIN: ("VOC2007", "VOC2007/ImageSets/Main/trainval.txt"), TEST: VOC_TEST}, counts=False
    ),
    "voc_mlt": _voc_reader({TRAIN: ("VOC2012", "longtail2012/img_id.txt"), TEST: VOC_TEST}, True),
    "coco2014": _coco_reader("2014"),
    "coco_mlt": _coco_reader("2017", "longtail2017/img_id.pkl"),
    "nuswide_scene": _nus_wide,
}
# those that have difficult objects
DIFFICULT = ("voc2007", "voc_mlt")
