from __future__ import annotations

import json

import pandas as pd
import pytest

from lt_pipeline import comparison
from lt_pipeline.comparison import (
    CompareConfig,
    choose,
    differing_settings,
    first_two,
    in_words,
    shown_measures,
    study_measures,
    summarise,
)


def run(
    method, seed, accuracy, *, title=None, data="d", started=0, epochs=60, rank=1, experiment="",
    **metrics,
):  # fmt: skip
    config = {
        "method": method,
        "seed": seed,
        "device": "auto",
        "evaluation": {"ood": started},
        "model": {"backbone": "resnet8"},
        "training": {"epochs": epochs, "batch_size": 64},
        "options": {"rank": rank},
    }
    return {
        "run_id": f"{method}-{seed}-{data}-{started}-{epochs}-{rank}",
        "method": method,
        "title": title or method,
        "seed": seed,
        "data_hash": data,
        "started": started,
        "experiment": experiment,
        "config": json.dumps(config),
        "test/accuracy": accuracy,
        **metrics,
    }


def table(*runs):
    return pd.DataFrame(list(runs))


def chosen(*runs, **options):
    found, notes = choose(table(*runs), CompareConfig(**options), "d")
    return found, notes


def recalls_of(runs):
    return pd.DataFrame(
        [
            {"run_id": name, "group": group, "test_images": 100, "recall": 0.5}
            for name in runs["run_id"]
            for group in ("many", "few")
        ]
    )


def test_only_runs_on_the_same_images_count_unless_told():
    runs = (run("ce", 0, 0.5), run("ce", 1, 0.6, data="other"))
    found, notes = chosen(*runs)
    assert found["seed"].tolist() == [0]
    assert notes == [
        "1 run on other images of this data set left out (another data.seed or "
        "data.validation); compare.same_images=false takes them"
    ]
    found, notes = chosen(*runs, same_images=False)
    assert len(found) == 2
    assert notes == [
        "the runs are on 2 different draws of the data set, of which some may have fewer training "
        "images"
    ]


def test_experiments_of_dvc_are_no_runs_of_the_method_unless_told():
    runs = (run("ce", 0, 0.5), run("ce", 0, 0.9, started=1, rank=4, experiment="steep"))
    found, notes = chosen(*runs)
    assert found["test/accuracy"].tolist() == [0.5]
    assert notes == ["1 run of DVC experiments left out; compare.variants=true shows them"]
    assert chosen(*runs, variants=True)[0]["test/accuracy"].tolist() == [0.5, 0.9]


def test_of_a_run_that_was_repeated_the_latest_counts():
    # the evaluation and the device do not make another one
    found, _ = chosen(run("ce", 0, 0.5, started=2), run("ce", 0, 0.4, started=1))
    assert found["test/accuracy"].tolist() == [0.5]


def test_a_method_has_the_parameters_of_its_latest_run_or_a_row_for_each():
    runs = (
        run("ce", 0, 0.5, started=1, epochs=5),
        run("ce", 1, 0.5, started=2, epochs=5),
        run("ce", 0, 0.7, started=3),
        run("more", 0, 0.6, started=1),
    )
    found, notes = chosen(*runs)
    assert found[["label", "test/accuracy"]].to_numpy().tolist() == [["more", 0.6], ["ce", 0.7]]
    assert notes == [
        "2 runs of ce with other parameters than the latest left out; "
        "compare.variants=true shows them"
    ]
    found, notes = chosen(*runs, variants=True)
    assert notes == []
    assert set(found["label"]) == {"ce, epochs = 5", "ce, epochs = 60", "more"}


def test_variants_of_different_titles_are_not_variants():
    runs = (run("dbm", 0, 0.5, title="dbm bs", rank=1), run("dbm", 0, 0.6, title="dbm ce", rank=2))
    found, notes = chosen(*runs)
    assert set(found["label"]) == {"dbm bs", "dbm ce"}
    assert notes == []


def test_methods_without_a_run_are_named_with_what_to_do():
    found, notes = chosen(run("ce", 0, 0.5), run("more", 0, 0.5), methods=["ce", "dbm"])
    assert found["label"].tolist() == ["ce"]
    assert notes == ["no run of dbm yet: kedro run --pipelines=dbm"]


def test_the_table_has_means_and_deviations_and_intervals_of_single_runs():
    runs, _ = chosen(
        run("ce", 0, 0.4, **{"cost/training_seconds": 10.0}),
        run("ce", 1, 0.6, **{"cost/training_seconds": 30.0}),
        run("more", 0, 0.55, **{"cost/training_seconds": 50.0}),
    )
    found = summarise(runs, recalls_of(runs), "accuracy").set_index("label")
    assert found.index.tolist() == ["more", "ce"], "the best first"
    assert found.loc["ce", "runs"] == 2
    assert found.loc["ce", "seeds"] == "0 1"
    assert found.loc["ce", "test/accuracy"] == pytest.approx(0.5)
    assert found.loc["ce", "test/accuracy sd"] == pytest.approx(0.2 / 2**0.5)
    assert found.loc["ce", "cost/training_seconds"] == 20
    assert pd.isna(found.loc["ce", "test/accuracy low"])
    assert pd.isna(found.loc["more", "test/accuracy sd"])
    assert 0.42 < found.loc["more", "test/accuracy low"] < 0.45
    assert 0.55 < found.loc["more", "test/accuracy high"] < 0.58
    # half as many images are less sure; there is no class in medium
    assert found.loc["more", "test/few low"] < found.loc["more", "test/accuracy low"]
    assert "test/medium low" not in found


def test_sorting_by_what_no_run_has_is_refused():
    runs, _ = chosen(run("ce", 0, 0.4))
    with pytest.raises(ValueError, match="compare.sort_by is many, which no run has"):
        summarise(runs, recalls_of(runs), "many")


def test_the_first_two_are_paired_by_seed_and_images():
    runs, _ = chosen(
        *(run("ce", seed, value) for seed, value in ((3, 0.1), (1, 0.42), (0, 0.40))),
        *(run("more", seed, value) for seed, value in ((0, 0.46), (1, 0.50), (2, 0.9))),
        run("more", 3, 0.9, data="other"),
        same_images=False,
    )
    summary = summarise(runs, recalls_of(runs), "accuracy")
    found = first_two(runs, summary, "accuracy")
    assert (found["first"], found["second"], found["pairs"]) == ("more", "ce", 2)
    assert found["mean"] == pytest.approx(0.07)
    assert found["sd"] == pytest.approx(0.02 / 2**0.5)
    assert "more minus ce: +7.00 points of accuracy (sd 1.41 over 2 common seeds)" in in_words(
        found
    )
    assert "paired t test: t = 7.00, p = 0.0903" in in_words(found)


def test_what_cannot_be_tested_is_said():
    alone, _ = chosen(run("ce", 0, 0.4))
    summary = summarise(alone, recalls_of(alone), "accuracy")
    assert first_two(alone, summary, "accuracy") is None
    assert "One method only" in in_words(None)
    apart, _ = chosen(run("ce", 0, 0.4), run("more", 1, 0.5))
    found = first_two(apart, summarise(apart, recalls_of(apart), "accuracy"), "accuracy")
    assert "more and ce have no seed in common" in in_words(found)
    once, _ = chosen(run("ce", 0, 0.4), run("more", 0, 0.5))
    found = first_two(once, summarise(once, recalls_of(once), "accuracy"), "accuracy")
    assert in_words(found) == (
        "more minus ce: +10.00 points of accuracy on the one seed that both have; a test needs two."
    )
    same, _ = chosen(*(run(m, s, a) for m, a in (("ce", 0.5), ("more", 0.75)) for s in (0, 1)))
    found = first_two(same, summarise(same, recalls_of(same), "accuracy"), "accuracy")
    assert "all the same, so there is nothing to test" in in_words(found)


def test_what_the_methods_should_share_and_do_not_is_said():
    runs, _ = chosen(run("ce", 0, 0.4), run("more", 0, 0.5, epochs=5))
    assert differing_settings(runs) == [
        "training.epochs is not the same for all: 60 (ce); 5 (more)"
    ]
    runs, _ = chosen(run("ce", 0, 0.4), run("more", 0, 0.5))
    assert differing_settings(runs) == []


def test_the_first_detector_is_among_the_columns():
    found = shown_measures(["ood/odin/mean/auroc", "ood/odin/mean/fpr95", "test/accuracy", "x"])
    assert list(found) == ["test/accuracy", "ood/odin/mean/auroc", "ood/odin/mean/fpr95"]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"methods": ["cee"]}, "compare.methods.0: unknown method 'cee': did you mean 'ce'"),
        ({"method": "ce"}, "compare: unknown parameter 'method': did you mean 'methods'"),
        ({"sort_by": "recall"}, "compare.sort_by: .*but got 'recall'"),
        ({"methods": []}, "compare.methods: .*at least 1"),
    ],
)
def test_a_wrong_block_is_refused_in_one_line(block, message):
    with pytest.raises(ValueError, match=message):
        CompareConfig.read(block)
    assert CompareConfig.read({"methods": "ce"}).methods == ("ce",)


def test_the_recipe_leaves_out_what_does_not_change_what_is_learned():
    one, other = (
        {"seed": 0, "device": "cpu", "options": {"a": 1, "b": 2}},
        {"options": {"b": 2, "a": 1}},
    )
    assert comparison.recipe(one) == comparison.recipe(other)
    assert comparison.recipe(one) != comparison.recipe({"options": {"a": 2, "b": 2}})


def test_a_study_shows_what_it_has_and_the_columns_that_it_chooses():
    names = [
        "test/few", "test/accuracy", "test/lowest_recall", "geometry/separability/few",
        "ood/knn/mean/auroc", "ood/knn/of_7/fpr95", "cost/training_seconds", "train/loss",
    ]  # fmt: skip
    usual = ["accuracy %", "few %", "AUROC knn %", "FPR95 knn, 7 sets %", "training s"]
    assert [m.heading for m in study_measures(names, ()).values()] == usual
    chosen = study_measures(names, ("separability", "lowest_recall"))
    assert [m.heading for m in chosen.values()][2:4] == ["S few", "lowest recall %"]
    assert len(chosen) == 7
