from __future__ import annotations

from dataclasses import replace

import pytest

from lt_pipeline.learning.data.prepare import DataConfig
from lt_pipeline.learning.data.published import PUBLISHED, SAID, beside_published
from lt_pipeline.pipelines.data_prep.nodes import describe
from toys import toy_card


def card_of(**data):
    settings = DataConfig(**data).model_dump(mode="json")
    card = toy_card((40, 20, 10))
    return replace(card, settings=settings, longtail=replace(card.longtail, images=50))


@pytest.mark.parametrize("data", [{"source": "voc2007"}, {"name": "voc2007", "labels": "l.csv"}])
def test_what_was_read_stands_beside_the_papers_row_in_the_log(data, caplog):
    caplog.set_level("INFO")
    describe(card_of(path="p", **data))
    (said,) = caplog.messages
    assert said == (
        "voc2007, to train on (MORE, table 7 in brackets): images 50 (5,000), labels 3 (20), "
        "of the rarest 10 (96), of the most frequent 40 (2,008), labels an image 1.40 (2.50), "
        "imbalance 4.00 (20.92)"
    )


def test_a_set_that_no_paper_speaks_of_or_that_was_cut_is_beside_none():
    assert beside_published(card_of(source="voc_mlt", path="p")) is None
    assert beside_published(card_of(source="voc2007", path="p", long_tail=20)) is None
    assert beside_published(card_of()) is None


def test_the_papers_imbalance_is_that_of_its_counts():
    for name, row in PUBLISHED.items():
        figures = row.figures
        assert figures.keys() == SAID.keys()
        ratio = figures["largest_class"] / figures["smallest_class"]
        assert figures["imbalance_ratio"] == pytest.approx(ratio, abs=0.006), name
