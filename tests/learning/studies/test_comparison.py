from __future__ import annotations

import json

import pandas as pd
import pytest

from lt_pipeline.learning.evaluation.metrics.catalog import METRICS
from lt_pipeline.learning.studies import comparison
from lt_pipeline.learning.studies.comparison import (
    NAMED,
    CompareConfig,
    by_data,
    choose,
    differing_settings,
    first_two,
    over_seeds,
    paired,
    summarise,
    summary_sentence,
    with_differences,
)
from lt_pipeline.reports.differences import Paired
from lt_pipeline.reports.documents import html_table, table_rows
from toys import PROJECT


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
    rows, notes = choose(table(*runs), CompareConfig(**options), "d")
    return rows, notes


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
    rows, notes = chosen(*runs)
    assert rows["seed"].tolist() == [0]
    assert notes == [
        "1 run on other images of this data set left out (another data.seed or "
        "data.validation); compare.same_images=false takes them"
    ]
    rows, notes = chosen(*runs, same_images=False)
    assert len(rows) == 2
    assert notes == [
        "the runs are on 2 different draws of the data set, of which some may have fewer training "
        "images"
    ]


def test_experiments_of_dvc_are_no_runs_of_the_method_unless_told():
    runs = (run("ce", 0, 0.5), run("ce", 0, 0.9, started=1, rank=4, experiment="steep"))
    rows, notes = chosen(*runs)
    assert rows["test/accuracy"].tolist() == [0.5]
    assert notes == ["1 run of DVC experiments left out; compare.variants=true shows them"]
    assert chosen(*runs, variants=True)[0]["test/accuracy"].tolist() == [0.5, 0.9]


def test_of_a_run_that_was_repeated_the_latest_counts():
    # the evaluation and the device do not make another one
    rows, _ = chosen(run("ce", 0, 0.5, started=2), run("ce", 0, 0.4, started=1))
    assert rows["test/accuracy"].tolist() == [0.5]


def test_a_method_has_the_parameters_of_its_latest_run_or_a_row_for_each():
    runs = (
        run("ce", 0, 0.5, started=1, epochs=5),
        run("ce", 1, 0.5, started=2, epochs=5),
        run("ce", 0, 0.7, started=3),
        run("more", 0, 0.6, started=1),
    )
    rows, notes = chosen(*runs)
    assert rows[["label", "test/accuracy"]].to_numpy().tolist() == [["more", 0.6], ["ce", 0.7]]
    assert notes == [
        "2 runs of ce with other parameters than the latest left out; "
        "compare.variants=true shows them"
    ]
    rows, notes = chosen(*runs, variants=True)
    assert notes == []
    assert set(rows["label"]) == {"ce, epochs = 5", "ce, epochs = 60", "more"}


def test_variants_of_different_titles_are_not_variants():
    runs = (run("dbm", 0, 0.5, title="dbm bs", rank=1), run("dbm", 0, 0.6, title="dbm ce", rank=2))
    rows, notes = chosen(*runs)
    assert set(rows["label"]) == {"dbm bs", "dbm ce"}
    assert notes == []


def test_methods_without_a_run_are_named_with_what_to_do():
    rows, notes = chosen(run("ce", 0, 0.5), run("more", 0, 0.5), methods=["ce", "dbm"])
    assert rows["label"].tolist() == ["ce"]
    assert notes == ["no run of dbm yet: kedro run --pipelines=dbm"]


def test_the_table_has_means_and_deviations_and_intervals_of_single_runs():
    runs, _ = chosen(
        run("ce", 0, 0.4, **{"cost/training_seconds": 10.0}),
        run("ce", 1, 0.6, **{"cost/training_seconds": 30.0}),
        run("more", 0, 0.55, **{"cost/training_seconds": 50.0}),
    )
    rows = summarise(runs, recalls_of(runs), "accuracy").set_index("label")
    assert rows.index.tolist() == ["more", "ce"], "the best first"
    assert rows.loc["ce", "runs"] == 2
    assert rows.loc["ce", "seeds"] == "0 1"
    assert rows.loc["ce", "test/accuracy"] == pytest.approx(0.5)
    assert rows.loc["ce", "test/accuracy sd"] == pytest.approx(0.2 / 2**0.5)
    assert rows.loc["ce", "cost/training_seconds"] == 20
    assert pd.isna(rows.loc["ce", "test/accuracy low"])
    assert pd.isna(rows.loc["more", "test/accuracy sd"])
    assert 0.42 < rows.loc["more", "test/accuracy low"] < 0.45
    assert 0.55 < rows.loc["more", "test/accuracy high"] < 0.58
    # half as many images are less sure; there is no class in medium
    assert rows.loc["more", "test/few low"] < rows.loc["more", "test/accuracy low"]
    assert "test/medium low" not in rows


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
    gap = first_two(runs, summary, "accuracy")
    assert (gap["first"], gap["second"], gap["pairs"]) == ("more", "ce", 2)
    assert gap["mean"] == pytest.approx(0.07)
    assert gap["sd"] == pytest.approx(0.02 / 2**0.5)
    # the quantile of t with one degree of freedom is 12.7062: with two seeds nothing is sure
    assert [gap["low"], gap["high"]] == pytest.approx([0.07 - 0.127062, 0.07 + 0.127062])
    assert summary_sentence(gap) == (
        "more minus ce: +7.00 points of accuracy [-5.71, +19.71] (paired 95 % interval; sd 1.41 "
        "over 2 common seeds); paired t test: t = 7.00, p = 0.0903; a difference of this size "
        "takes 3 seeds to be found."
    )


def test_what_cannot_be_tested_is_said():
    alone, _ = chosen(run("ce", 0, 0.4))
    summary = summarise(alone, recalls_of(alone), "accuracy")
    assert first_two(alone, summary, "accuracy") is None
    assert "One method only" in summary_sentence(None)
    apart, _ = chosen(run("ce", 0, 0.4), run("more", 1, 0.5))
    gap = first_two(apart, summarise(apart, recalls_of(apart), "accuracy"), "accuracy")
    assert "more and ce have no seed in common" in summary_sentence(gap)
    once, _ = chosen(run("ce", 0, 0.4), run("more", 0, 0.5))
    gap = first_two(once, summarise(once, recalls_of(once), "accuracy"), "accuracy")
    assert summary_sentence(gap) == (
        "more minus ce: +10.00 points of accuracy on the one seed that both have; an interval and "
        "a test need two."
    )
    same, _ = chosen(*(run(m, s, a) for m, a in (("ce", 0.5), ("more", 0.75)) for s in (0, 1)))
    gap = first_two(same, summarise(same, recalls_of(same), "accuracy"), "accuracy")
    assert "all the same, so there is nothing to test" in summary_sentence(gap)


ACCURACY = "test/accuracy"
SHOWN = METRICS[ACCURACY]


def differing(*runs, **options):
    """The table of ``runs`` and the cells of its last two columns by label."""
    compared, _ = chosen(*runs, **options)
    summary = summarise(compared, recalls_of(compared), "accuracy")
    columns = Paired(SHOWN, summary["label"].iloc[0])
    headings, rows = table_rows(summary, [], {ACCURACY: SHOWN}, paired=columns)
    return headings, {row.cells[0]: row.cells[-2:] for row in rows}


def test_every_row_has_its_paired_difference_from_the_first():
    runs = [run("best", seed, value) for seed, value in enumerate((0.90, 0.95, 0.91))]
    runs += [run("mid", seed, value) for seed, value in enumerate((0.86, 0.90, 0.89))]
    # 10, 11 and 12 below; one seed in common; none; the same below in both
    runs += [run("low", seed, value) for seed, value in enumerate((0.80, 0.84, 0.79))]
    runs += [run("once", 2, 0.86), run("alone", 7, 0.2)]
    runs += [run("even", seed, value) for seed, value in ((0, 0.40), (1, 0.45))]
    headings, cells = differing(*runs)
    assert headings[-2:] == ["accuracy % minus best", "seeds needed"]
    assert cells == {
        "best": ["", ""],
        # -4, -5 and -2: sd 1.53, half an interval 4.3027 * 1.53 / sqrt 3
        "mid": ["-3.67 [-7.5, +0.1]", "4"],
        "low": ["-11.00 [-13.5, -8.5]", "3"],
        "once": ["-5.00 (one seed)", "-"],
        "alone": ["no common seed", "-"],
        "even": ["-50.00 (in every seed)", "-"],
    }
    assert differing(*runs[:3])[0] == ["method", "runs", "accuracy %"], "one row differs from none"


def test_pairs_are_of_one_seed_and_one_set_of_images_and_have_the_metric():
    few = "test/few"
    runs, _ = chosen(
        run("ce", 0, 0.5, **{few: 0.1}),
        run("ce", 1, 0.5, **{few: 0.1}),
        run("ce", 1, 0.5, data="other", **{few: 0.3}),
        run("more", 1, 0.6, **{few: 0.2}),
        run("more", 0, 0.6, **{few: float("nan")}),
        run("more", 0, 0.6, data="other", **{few: 0.9}),
        same_images=False,
    )
    gap = paired(runs, "label", "more", "ce", few)
    assert (gap["pairs"], gap["mean"]) == (1, pytest.approx(0.1))
    assert paired(runs, "label", "more", "ce", ACCURACY)["pairs"] == 2


def test_means_and_deviations_are_one_function_and_in_order():
    runs = pd.DataFrame({"arm": ["z", "a", "z"], "seed": [0, 0, 1], "x": [0.1, 0.5, 0.3]})
    table = over_seeds(runs, "arm", ["x"])
    assert table.index.tolist() == ["z", "a"]
    assert table["runs"].tolist() == [2, 1]
    assert table["x"].tolist() == pytest.approx([0.2, 0.5])
    assert table["x sd"]["z"] == pytest.approx(0.02**0.5)
    assert pd.isna(table["x sd"]["a"])
    differences = with_differences(table, runs, "a", ["x"])
    assert differences.loc["z", "x difference"] == pytest.approx(-0.4)
    assert differences.loc["z", "x difference pairs"] == 1
    assert differences.loc["a"].filter(like="difference").isna().all()


def test_a_papers_own_difference_stands_below_with_the_seeds_that_it_takes():
    more, la = (0.3259, 0.3219, 0.3174), (0.3286, 0.3165, 0.3236)
    runs, _ = chosen(
        *(run("la", seed, value) for seed, value in enumerate(la)),
        *(run("more", seed, value) for seed, value in enumerate(more)),
    )
    summary = summarise(runs, recalls_of(runs), "accuracy")
    figures = {"la": 0.507, "more": 0.514}
    beside = [
        {
            "label": label,
            "metric": ACCURACY,
            "ours": 0.32,
            "paper": value,
            "source": "MORE, table 1",
        }
        for label, value in figures.items()
    ]
    columns = Paired(SHOWN, "la")
    _, rows = table_rows(summary, beside, {ACCURACY: SHOWN}, paired=columns)
    assert [row.cells[-2:] for row in rows] == [
        ["", ""],
        ["", ""],
        ["-0.12 [-1.6, +1.4]", "207"],
        ["+0.7", "8"],
    ]
    alone = [one for one in beside if one["label"] == "more"]
    _, rows = table_rows(summary, alone, {ACCURACY: SHOWN}, paired=columns)
    assert rows[-1].cells[-2:] == ["", ""], "the paper has no figure for the other one"
    assert "<td>-0.12<small>[-1.6, <wbr>+1.4]</small></td>" in html_table(["m"], rows)
    assert "<td>+0.12<small>[-1, <wbr>+2]</small></td>" in html_table(
        ["m"], [rows[0]._replace(cells=["+0.12 [-1, +2]"])]
    )


def test_the_benchmarks_print_the_difference_from_their_first_label(monkeypatch):
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")
    from compare_seeds import read, summary

    gap = summary(read(PROJECT / "benchmarks/results/cifar100_lt_ir100_resnet8.csv"))
    assert gap.columns[1:4].tolist() == ["accuracy %", "accuracy % minus ce", "seeds needed"]
    assert gap.loc["logit_adjustment", "accuracy %"] == "32.3 ± 0.6"
    assert gap.loc["logit_adjustment"].tolist()[2:4] == ["+4.62 [+2.9, +6.3]", "3"]
    assert gap.loc["decomposition_only"].tolist()[2:4] == ["+4.85 (one seed)", "-"]


def test_the_benchmarks_print_that_of_the_mean_average_precision_where_labels_are_several(
    monkeypatch,
):
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")
    from compare_seeds import summary

    reached = {"bce": (0.5, 0.52), "more": (0.53, 0.56)}
    table = summary(
        [
            {"label": label, "seed": seed, "mean_average_precision": value, "macro_f1": 0.4}
            for label, values in reached.items()
            for seed, value in enumerate(values)
        ]
    )
    assert table.columns[1:4].tolist() == ["mAP %", "mAP % minus bce", "seeds needed"]
    assert table.loc["more", "mAP %"] == "54.5 ± 2.1"
    assert table.loc["more", "mAP % minus bce"].startswith("+3.50 [")


def test_what_the_methods_should_share_and_do_not_is_said():
    runs, _ = chosen(run("ce", 0, 0.4), run("more", 0, 0.5, epochs=5))
    assert differing_settings(runs) == [
        "training.epochs is not the same for all: 60 (ce); 5 (more)"
    ]
    runs, _ = chosen(run("ce", 0, 0.4), run("more", 0, 0.5))
    assert differing_settings(runs) == []


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"methods": ["cee"]}, "compare.methods.0: unknown method 'cee': did you mean 'ce'"),
        ({"method": "ce"}, "compare: unknown parameter 'method': did you mean 'methods'"),
        (
            {"sort_by": "recall"},
            "compare.sort_by: unknown sort_by 'recall': did",
        ),
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


def test_the_table_has_the_settings_of_each_row():
    runs, _ = chosen(run("ce", 0, 0.5, epochs=5), run("more", 0, 0.6))
    rows = summarise(runs, recalls_of(runs), "accuracy")
    assert rows[["label", "epochs", "backbone"]].to_numpy().tolist() == [
        ["more", "60", "resnet8"],
        ["ce", "5", "resnet8"],
    ]


def test_runs_on_other_data_are_counted_by_what_differs():
    here = {"seed": 0, "profile": {"name": "step"}}
    runs = [("ce", {**here, "seed": 1}), ("more", {**here, "seed": 1}), ("ce", here), ("ce", {})]
    assert by_data(runs, here) == [
        "2 runs (ce, more) with data.seed=1",
        "1 run (ce) with these data settings",
        "1 run (ce) with data settings that are not logged",
    ]
    many = [("ce", {"seed": seed}) for seed in range(1, NAMED + 3)]
    assert len(by_data(many[:NAMED], here)) == NAMED
    assert by_data(many, here)[NAMED:] == ["and runs with 2 other data settings"]
    assert by_data([], here) == []
