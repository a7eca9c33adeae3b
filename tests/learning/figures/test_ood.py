from __future__ import annotations

import io
from functools import partial
from itertools import combinations, pairwise

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.figures.ood import conflict, embedding, ood_by_group, ood_by_set
from lt_pipeline.learning.figures.study import COLOURS
from lt_pipeline.learning.figures.style import GROUP_COLOURS

SETS = [f"some_longish_set_{n}" for n in range(12)]
DETECTORS = ["msp", "odin", "energy", "max_logit", "knn", "vim"]
GROUPS = ("many", "medium", "few")


def scores(auroc, fpr95, *groups):
    return {"auroc": auroc, "fpr95": fpr95} | {
        f"auroc_{name}": value for name, value in zip(GROUPS, groups, strict=False)
    }


def report(detectors=6, sets=12):
    return {
        detector: {
            name: scores(0.6 + 0.03 * n, 0.9 - 0.05 * n, 0.9, 0.7, 0.5)
            for n, name in enumerate([*SETS[:sets], "mean"])
        }
        for detector in DETECTORS[:detectors]
    }


def pulls(cosine, share, groups=("many", "medium", "few", "all")):
    return {
        "cosine": {group: cosine + 0.01 * n for n, group in enumerate(groups)},
        "negative_share": dict.fromkeys(groups, share),
    }


def points(axes):
    """Label -> x and row (rounded) of its markers."""
    return {
        str(line.get_label()): [(float(x), round(float(y))) for x, y in line.get_xydata()]
        for line in axes.lines
        if line.get_linestyle() == "None"
    }


def rows(figure):
    return [tick.get_text() for tick in figure.axes[0].get_yticklabels()]


def names(legend):
    return [text.get_text() for text in legend.get_texts()]


def is_png(figure) -> bool:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    return buffer.getvalue().startswith(b"\x89PNG") and len(buffer.getvalue()) > 3000


def written(figure):
    """Every text that is drawn and its box."""
    FigureCanvasAgg(figure).draw()
    labels = [figure._suptitle, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        labels += [axes.xaxis.label, axes.yaxis.label, axes._left_title, *axes.texts]
        labels += axes.get_legend().get_texts() if axes.get_legend() else []
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            labels += [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
    drawn = [text for text in labels if text and text.get_visible() and text.get_text()]
    return [(text.get_text(), text.get_window_extent()) for text in drawn]


def assert_readable(figure):
    """No text leaves the figure or covers another."""
    boxes = written(figure)
    assert boxes
    for text, box in boxes:
        assert box.x0 >= -0.5, text
        assert box.y0 >= -0.5, text
        assert box.x1 <= figure.bbox.x1 + 0.5, text
        assert box.y1 <= figure.bbox.y1 + 0.5, text
    for (text, box), (other, second) in combinations(boxes, 2):
        assert not box.overlaps(second), f"{text!r} covers {other!r}"


@pytest.mark.parametrize(("detectors", "sets"), [(6, 12), (1, 1), (6, 1), (1, 12), (3, 4)])
def test_every_set_is_a_row_with_a_marker_a_detector(detectors, sets):
    figure = ood_by_set(report(detectors, sets), "darl on CIFAR-100-LT")
    assert rows(figure) == [name.replace("_", " ") for name in [*SETS[:sets], "mean"]]
    left, right = figure.axes
    for axes, key, first, step in ((left, "AUROC, %", 60, 3), (right, "FPR95, %", 90, -5)):
        wanted = [pytest.approx((first + step * n, n)) for n in range(sets + 1)]
        assert points(axes) == {d.replace("_", " "): wanted for d in DETECTORS[:detectors]}
        assert key in axes.get_xlabel()
    assert names(figure.legends[0]) == [d.replace("_", " ") for d in DETECTORS[:detectors]]
    drawn = [line for line in left.lines if line.get_linestyle() == "None"]
    assert len({line.get_color() for line in drawn}) == detectors
    assert len({line.get_marker() for line in drawn}) == detectors
    assert figure.get_suptitle() == "OOD detection by set: darl on CIFAR-100-LT"
    assert is_png(figure)
    assert_readable(figure)
    legend = figure.legends[0].get_window_extent()
    assert all(not legend.overlaps(axes.get_window_extent()) for axes in figure.axes)


def test_the_numbers_of_two_panels_stand_apart():
    figure = ood_by_set(report(6, 12), "x")
    FigureCanvasAgg(figure).draw()
    hundred, zero = (
        next(t.label1 for t in axes.xaxis.get_major_ticks() if t.label1.get_text() == number)
        for axes, number in zip(figure.axes, ("100", "0"), strict=True)
    )
    assert zero.get_window_extent().x0 - hundred.get_window_extent().x1 > 15


def test_markers_of_one_row_do_not_hide_each_other():
    figure = ood_by_set(report(6, 2), "x")
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0]
    heights = sorted(
        axes.transData.transform(line.get_xydata()[0])[1]
        for line in axes.lines
        if line.get_linestyle() == "None"
    )
    assert min(b - a for a, b in pairwise(heights)) > 4


def test_the_mean_is_last_wherever_it_stood_and_is_set_apart():
    figure = ood_by_set({"msp": {"mean": scores(0.5, 0.5), "svhn": scores(0.6, 0.4)}}, "x")
    assert rows(figure) == ["svhn", "mean"]
    assert points(figure.axes[0]) == {"msp": [(50, 1), (60, 0)]}
    assert [0.5, 0.5] in [list(line.get_ydata()) for line in figure.axes[0].lines]
    alone = ood_by_set({"msp": {"svhn": scores(0.6, 0.4)}}, "x")
    assert rows(alone) == ["svhn"]
    assert_readable(alone)


def test_what_a_detector_has_not_is_left_out():
    figure = ood_by_set(
        {
            "msp": {"svhn": scores(0.6, 0.4), "noise": scores(float("nan"), 0.1)},
            "knn": {"noise": scores(0.3, 0.9)},
        },
        "x",
    )
    assert points(figure.axes[0]) == {"msp": [(60, 0)], "knn": [(30, 1)]}
    assert points(figure.axes[1])["msp"] == [(40, 0), (10, 1)]
    assert figure.axes[0].get_xlim() == (30, 100), "worse than chance is in the picture"


def test_groups_have_their_colours_and_a_group_that_is_not_there_none():
    values = {"svhn": scores(0.8, 0.3, 0.9, 0.8, 0.75), "noise": scores(0.7, 0.2, 0.65)}
    figure = ood_by_group(values, "max_logit", "darl on CIFAR-10-LT")
    axes = figure.axes[0]
    assert points(axes) == {
        "all": [(80, 0), (70, 1)], "many": [(90, 0), (65, 1)], "medium": [(80, 0)],
        "few": [(75, 0)],
    }  # fmt: skip
    drawn = {
        line.get_label(): line.get_color() for line in axes.lines if line.get_marker() != "None"
    }
    assert {name: drawn[name] for name in GROUPS} == GROUP_COLOURS
    assert figure.get_suptitle() == "OOD detection by group, max logit: darl on CIFAR-10-LT"
    assert_readable(figure)
    few = ood_by_group({"svhn": {"auroc": 0.8, "auroc_few": 0.7}}, "msp", "x")
    assert names(few.axes[0].get_legend()) == ["all", "few"]
    assert is_png(few)
    assert_readable(few)
    assert_readable(ood_by_group(report(1, 12)["msp"], "msp", "x"))


def test_conflict_shows_cosines_about_zero_and_shares_in_percent():
    values = {"svhn": pulls(-0.2, 0.9), "mixed": pulls(0.1, 0.25)}
    figure = conflict(values, "darl")
    left, right = figure.axes
    assert rows(figure) == ["svhn", "mixed"]
    assert points(left)["many"] == [(-0.2, 0), (0.1, 1)]
    assert points(left)["all"] == [(pytest.approx(-0.17), 0), (pytest.approx(0.13), 1)]
    assert points(right)["few"] == [(90, 0), (25, 1)]
    assert [0, 0] in [list(line.get_xdata()) for line in left.lines]
    low, high = left.get_xlim()
    assert low == -high < -0.2
    assert right.get_xlim() == (0, 100)
    assert names(left.get_legend()) == list(COLOURS)
    assert_readable(figure)
    assert is_png(figure)


def test_conflict_with_one_set_many_sets_or_no_pull_at_all():
    one = conflict({"mixed": pulls(0.0, 0.4, ("medium", "few", "all"))}, "x")
    assert names(one.axes[0].get_legend()) == ["all", "medium", "few"]
    assert_readable(one)
    assert_readable(conflict({name: pulls(-0.1, 0.9) for name in SETS}, "x"))
    still = {"mixed": {"cosine": {"all": 0.0}, "negative_share": {"all": 0.0}}}
    assert conflict(still, "x").axes[0].get_xlim() == pytest.approx((-1.15, 1.15))


@pytest.mark.parametrize("picture", [ood_by_set, partial(ood_by_group, detector="msp"), conflict])
def test_a_picture_of_no_set_is_refused(picture):
    with pytest.raises(ValueError, match="needs at least one"):
        picture({}, title="x")


def test_the_embedding_colours_groups_greys_ood_sets_and_stars_mixed_images():
    longtail = LongTail.from_counts([200, 50, 150])
    inside, labels = torch.rand(6, 2), torch.tensor([0, 1, 2, 0, 1, 0])
    outside = {name: torch.rand(3, 2) for name in SETS}
    mixed = {"mixup": torch.rand(2, 2), "cutmix": torch.rand(4, 2)}
    figure = embedding(inside, labels, longtail, outside, mixed, "darl")
    axes = figure.axes[0]
    clouds = {line.get_label(): line for line in axes.lines}
    assert names(axes.get_legend()) == list(clouds)
    assert list(clouds)[:2] == ["many: 4", "medium: 2"], "no image is in the group few"
    assert list(clouds)[-2:] == ["mixup: 2", "cutmix: 4"]
    assert clouds["many: 4"].get_xydata() == pytest.approx(inside[labels != 1].numpy())
    assert clouds["some longish set 3: 3"].get_xydata() == pytest.approx(outside[SETS[3]].numpy())
    assert clouds["medium: 2"].get_markerfacecolor() == GROUP_COLOURS["medium"]
    sets = list(clouds.values())[2:-2]
    for cloud in sets:
        red, green, blue = (to_hex(cloud.get_markeredgecolor())[i : i + 2] for i in (1, 3, 5))
        assert red == green == blue
    assert len({(c.get_markeredgecolor(), c.get_marker()) for c in sets}) == 12
    assert {clouds[name].get_marker() for name in ("mixup: 2", "cutmix: 4")} == {"*"}
    assert clouds["mixup: 2"].get_markerfacecolor() != clouds["cutmix: 4"].get_markerfacecolor()
    order = [clouds[name].get_zorder() for name in ("some longish set 0: 3", "many: 4", "mixup: 2")]
    assert order == sorted(set(order)), "sets behind ID images behind stars"
    assert axes.get_title(loc="left") == "Features (t-SNE): darl"
    assert is_png(figure)
    assert_readable(figure)
    assert not axes.get_legend().get_window_extent().overlaps(axes.get_window_extent())


def test_an_embedding_of_id_images_alone():
    figure = embedding(
        torch.rand(3, 2), torch.zeros(3).long(), LongTail.from_counts([9]), {}, {}, "x"
    )
    assert names(figure.axes[0].get_legend()) == ["few: 3"]
    assert_readable(figure)
