"""What papers say of data sets with several labels, beside what was read of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.data.prepare import DataCard

# what ``LongTail.statistics`` calls it, in words, and its decimals
SAID = {
    "images": ("images", 0),
    "classes": ("labels", 0),
    "smallest_class": ("of the rarest", 0),
    "largest_class": ("of the most frequent", 0),
    "labels_per_image": ("labels an image", 2),
    "imbalance_ratio": ("imbalance", 2),
}


class Published(NamedTuple):
    """A row of a paper's table of data sets, as printed; the names are the statistics'."""

    place: str
    figures: Mapping[str, float]


def _more(*figures: float) -> Published:
    return Published("MORE, table 7", dict(zip(SAID, figures, strict=True)))


# by ``data.source``, or by ``data.name`` of files of one's own. MIML's contradict one another:
# 3,000 images of 1.24 labels have 3,720, and five of at most 441 have 2,205
PUBLISHED = {
    "miml": _more(3_000, 5, 289, 441, 1.24, 1.53),
    "voc2007": _more(5_000, 20, 96, 2_008, 2.5, 20.92),
    "nuswide_scene": _more(17_500, 33, 75, 11_995, 3.4, 159.93),
    "coco2014": _more(82_800, 80, 128, 45_174, 3.5, 352.92),
}


def beside_published(card: DataCard) -> str | None:
    """Return in a sentence what was read to train on, and what the paper has in its place.

    None is where no paper says anything of the set, or it is cut to a long tail.
    """
    config = card.config
    paper = PUBLISHED.get(config.source, PUBLISHED.get(config.name or ""))
    if paper is None or config.long_tail is not None:
        return None
    return (
        f"{config.title}, to train on ({paper.place} in brackets): {_pairs(card.longtail, paper)}"
    )


def _pairs(longtail: LongTail, published: Published) -> str:
    own = longtail.statistics()
    return ", ".join(
        f"{words} {own[name]:,.{digits}f} ({published.figures[name]:,.{digits}f})"
        for name, (words, digits) in SAID.items()
        if name in own
    )
