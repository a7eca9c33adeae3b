from __future__ import annotations

import pickle
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lt_pipeline.learning.data.samplers import (
    SAMPLERS,
    SamplerConfig,
    class_aware,
    class_balanced,
    class_probabilities,
    draw,
    instance_balanced,
    progressive_probabilities,
)

COUNTS = st.lists(st.integers(0, 10_000), min_size=1, max_size=30).filter(any)
DRAWING = sorted(set(SAMPLERS) - {"instance_balanced"})
HALFWAY = 0.5  # how much of the stage is over where a test does not say


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labelled(counts: list[int], seed: int = 99) -> Tensor:
    """Labels with ``counts`` of each class, shuffled."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=seeded(seed))]


def expected_probabilities(name: str, counts: list[int]) -> list[float]:
    """The sampler's probabilities from its definition, in plain Python."""
    total, present = sum(counts), sum(n > 0 for n in counts)
    if name == "progressively_balanced":
        return [(1 - HALFWAY) * n / total + HALFWAY * (n > 0) / present for n in counts]
    powers = {"instance_balanced": 1, "square_root": 0.5, "reverse": -1}
    power = powers.get(name, 0)  # class_balanced and class_aware
    weights = [n**power if n else 0.0 for n in counts]
    return [weight / sum(weights) for weight in weights]


def assert_follows(tally: Tensor, probabilities: list[float]) -> None:
    """A chi-square test whose bound is 5 standard deviations above the mean of chi-square."""
    expected = torch.tensor(probabilities, dtype=torch.float64) * tally.sum()
    assert int(tally[expected == 0].sum()) == 0
    tally, expected = tally[expected > 0], expected[expected > 0]
    df = max(len(tally) - 1, 1)
    assert float(((tally - expected) ** 2 / expected).sum()) < df + 5 * (2 * df) ** 0.5


@pytest.mark.parametrize(
    ("power", "expected"),
    [
        (1.0, [16 / 21, 4 / 21, 0, 1 / 21]),
        (0.5, [4 / 7, 2 / 7, 0, 1 / 7]),
        (0.0, [1 / 3, 1 / 3, 0, 1 / 3]),
        (-1.0, [1 / 21, 4 / 21, 0, 16 / 21]),  # 1/16 : 1/4 : 1
    ],
)
def test_probabilities_are_powers_of_counts_made_to_sum_to_one(
    power: float, expected: list[float]
) -> None:
    assert class_probabilities(torch.tensor([16, 4, 0, 1]), power).tolist() == pytest.approx(
        expected, rel=1e-14
    )


@pytest.mark.parametrize(
    ("done", "expected"),
    [(0.0, [0.75, 0.25, 0]), (0.5, [0.625, 0.375, 0]), (0.8, [0.55, 0.45, 0]), (1, [0.5, 0.5, 0])],
)
def test_progressive_probabilities_move_linearly_to_equal_ones(
    done: float, expected: list[float]
) -> None:
    counts = torch.tensor([30, 10, 0])
    assert progressive_probabilities(counts, done).tolist() == pytest.approx(expected, rel=1e-14)


@given(counts=COUNTS, power=st.floats(-1, 1))
def test_probabilities_sum_to_one_and_absent_classes_have_none(
    counts: list[int], power: float
) -> None:
    probabilities = class_probabilities(torch.tensor(counts), power)
    assert probabilities.dtype == torch.float64
    assert float(probabilities.sum()) == pytest.approx(1)
    assert (probabilities > 0).tolist() == [n > 0 for n in counts]
    ranked = probabilities[torch.tensor(counts).argsort()]
    ranked = ranked[ranked > 0]
    ascending = ranked if power >= 0 else ranked.flip(0)
    assert bool((ascending.diff() >= -1e-15).all())


@given(
    classes=st.integers(1, 20), count=st.integers(1, 1000), power=st.sampled_from([1, 0.5, 0, -1])
)
def test_equal_counts_make_all_distributions_uniform(
    classes: int, count: int, power: float
) -> None:
    counts = torch.full((classes,), count)
    uniform = [1 / classes] * classes
    assert class_probabilities(counts, power).tolist() == pytest.approx(uniform)
    assert progressive_probabilities(counts, 0.3).tolist() == pytest.approx(uniform)


@given(size=st.integers(0, 200), seed=st.integers(0, 9))
def test_instance_balanced_is_a_permutation(size: int, seed: int) -> None:
    positions = instance_balanced(torch.zeros(size, dtype=torch.int64), seeded(seed))
    assert positions.sort().values.tolist() == list(range(size))


@pytest.mark.parametrize("name", DRAWING)
def test_classes_are_drawn_with_the_probabilities_of_the_definition(name: str) -> None:
    counts = [12_000, 4_000, 0, 900, 100, 10]
    labels = labelled(counts)
    positions = SAMPLERS[name](labels, seeded(), HALFWAY)
    tally = torch.bincount(labels[positions], minlength=len(counts))
    assert_follows(tally, expected_probabilities(name, counts))


@pytest.mark.parametrize("name", DRAWING)
def test_images_of_a_class_are_equally_likely(name: str) -> None:
    counts = [300, 100, 30]
    labels = labelled(counts)
    drawn = torch.cat([SAMPLERS[name](labels, seeded(seed), HALFWAY) for seed in range(200)])
    tally = torch.bincount(drawn, minlength=len(labels))
    for c in range(len(counts)):
        mine = tally[labels == c]
        assert_follows(mine, [1 / len(mine)] * len(mine))


@settings(deadline=None, max_examples=40)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any),
    name=st.sampled_from(sorted(SAMPLERS)),
    seed=st.integers(0, 99),
)
def test_an_epoch_has_as_many_positions_as_there_are_labels_and_all_exist(
    counts: list[int], name: str, seed: int
) -> None:
    labels = labelled(counts)
    positions = SamplerConfig(name=name).build()(labels, seeded(seed), HALFWAY)
    assert positions.shape == labels.shape
    assert positions.dtype == torch.int64
    assert bool(((positions >= 0) & (positions < len(labels))).all())


@settings(deadline=None)
@given(counts=st.lists(st.integers(0, 40), min_size=2, max_size=12).filter(any))
def test_a_class_with_all_the_probability_is_the_only_one_drawn(counts: list[int]) -> None:
    labels = labelled(counts)
    for c in set(labels.tolist()):
        certain = torch.zeros(len(counts), dtype=torch.float64)
        certain[c] = 1
        assert set(labels[draw(labels, certain, seeded())].tolist()) == {c}


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_the_generator_alone_decides(name: str) -> None:
    labels, sampler = labelled([60, 20, 5]), SAMPLERS[name]
    generator = seeded(3)
    first, second = (sampler(labels, generator, HALFWAY) for _ in range(2))
    torch.manual_seed(77)
    assert torch.equal(first, sampler(labels, seeded(3), HALFWAY))
    assert not torch.equal(first, second)
    assert not torch.equal(first, sampler(labels, seeded(4), HALFWAY))


def test_progressively_balanced_turns_to_the_tail_as_the_stage_goes_on() -> None:
    counts = [9_000, 1_000]
    labels = labelled(counts)
    for done in (0.0, 0.25, 0.9):
        drawn = labels[SAMPLERS["progressively_balanced"](labels, seeded(), done)]
        tail = 0.1 * (1 - done) + 0.5 * done
        assert_follows(torch.bincount(drawn), [1 - tail, tail])


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any),
    seed=st.integers(0, 99),
)
def test_class_aware_goes_through_classes_and_images_in_turn(counts: list[int], seed: int) -> None:
    labels = labelled(counts)
    positions = class_aware(labels, seeded(seed))
    runs = labels[positions].split(4)
    assert all(len(set(run.tolist())) == 1 for run in runs)
    rounds = [int(run[0]) for run in runs]
    present = [c for c, n in enumerate(counts) if n]
    for part in torch.tensor(rounds).split(len(present)):
        assert len(set(part.tolist())) == len(part)  # no class twice in a round
    for c in present:
        for part in positions[labels[positions] == c].split(counts[c]):
            assert len(set(part.tolist())) == len(part)  # no image twice in a round


def test_a_class_aware_batch_of_128_has_31_of_100_classes_and_a_class_balanced_one_72() -> None:
    counts = [int(500 * 100 ** (-c / 99) + 1e-9) for c in range(100)]  # CIFAR-100-LT
    labels = labelled(counts)
    classes = {
        sampler: [
            len(labels[batch].unique())
            for seed in range(5)
            for batch in sampler(labels, seeded(seed)).split(128)[:-1]
        ]
        for sampler in (class_aware, class_balanced)
    }
    assert max(classes[class_aware]) == 32
    means = {sampler: sum(images) / len(images) for sampler, images in classes.items()}
    assert means[class_aware] == pytest.approx(31, abs=0.6)
    # 100 (1 - 0.99^128)
    assert means[class_balanced] == pytest.approx(72.4, abs=0.6)


def test_class_aware_draws_every_round_anew() -> None:
    labels = labelled([30] * 10)
    drawn = labels[class_aware(labels, seeded())].tolist()[::4]  # 75 turns
    rounds = [tuple(drawn[at : at + 10]) for at in range(0, 70, 10)]
    assert len(set(rounds)) == 7
    images = class_aware(labelled([400, 3]), seeded()).tolist()
    tail = set((labelled([400, 3]) == 1).nonzero().squeeze(1).tolist())
    orders = [image for image in images if image in tail][:60]
    assert len({tuple(orders[at : at + 3]) for at in range(0, 60, 3)}) == 6  # all there are


@pytest.mark.parametrize(
    ("name", "epochs", "defer"), [("class_balanced", 200, 0.8), ("reverse", 10, 0.3)]
)
def test_the_deferred_sampler_takes_over_exactly_when_its_share_is_done(
    name: str, epochs: int, defer: float
) -> None:
    labels = labelled([40, 8, 2])
    sampler = SamplerConfig(name=name, defer=defer).build()
    first = round(defer * epochs)
    for epoch in range(epochs):
        kind = SAMPLERS[name] if epoch >= first else instance_balanced
        positions = sampler(labels, seeded(epoch), epoch / epochs)
        assert torch.equal(positions, kind(labels, seeded(epoch), epoch / epochs)), epoch


def test_a_deferred_progressive_sampler_begins_at_its_beginning() -> None:
    labels = labelled([90, 9, 1])
    sampler = SamplerConfig(name="progressively_balanced", defer=0.5).build()
    for done, own in ((0.5, 0.0), (0.75, 0.5), (0.875, 0.75)):
        expected = SAMPLERS["progressively_balanced"](labels, seeded(), own)
        assert torch.equal(sampler(labels, seeded(), done), expected)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_without_deferral_a_config_builds_the_sampler_of_its_name(name: str) -> None:
    labels = labelled([30, 10, 3])
    built = pickle.loads(pickle.dumps(SamplerConfig(name=name).build()))
    for done in (0.0, HALFWAY):
        expected = SAMPLERS[name](labels, seeded(), done)
        assert torch.equal(built(labels, seeded(), done), expected)


def test_every_name_has_a_sampler_and_plain_training_is_the_default() -> None:
    assert set(get_args(SamplerConfig.model_fields["name"].annotation)) == set(SAMPLERS)
    assert SamplerConfig() == SamplerConfig(name="instance_balanced", defer=0)


@pytest.mark.parametrize(
    "options", [{"defer": 1.0}, {"defer": -0.1}, {"defer": float("nan")}, {"name": "balanced"}]
)
def test_values_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        SamplerConfig.model_validate(options)
