"""Each image with an operation of its own: by groups or, where nothing may wait, by masks."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lt_pipeline.learning.transforms import operations, views
from lt_pipeline.learning.transforms.augment import AugmentConfig, augment
from lt_pipeline.learning.transforms.operations import OPERATIONS, operate
from lt_pipeline.learning.transforms.views import ViewConfig, random_view
from toys import scenes, seeded

# what a GPU would make the host wait for
WAITS = ("_local_scalar_dense", "nonzero", "bincount", "_to_host", "is_nonzero", "unique")


class Calls(TorchDispatchMode):
    """Counts operators."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count[function.overloadpacket.__name__] += 1
        return function(*args, **kwargs or {})


def augmented(name, images):
    if name == "contrast":
        return random_view(images, ViewConfig(flip=0.5, grayscale=0.2), seeded())
    return augment(images, AugmentConfig(crop_padding=0, **{name: True}), seeded())


@pytest.fixture
def masked(monkeypatch):
    """Choose as on a GPU."""
    monkeypatch.setattr(operations, "each", views.by_mask)
    monkeypatch.setattr(views, "each", views.by_mask)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["autoaugment", "trivialaugment", "contrast"])
def test_masks_choose_what_groups_do(name, channels, masked, monkeypatch):
    images = scenes(300, channels, 16, 12)
    by_mask = augmented(name, images)
    monkeypatch.undo()
    assert torch.equal(by_mask, augmented(name, images))
    assert not torch.equal(by_mask, images)


@pytest.mark.parametrize("name", ["autoaugment", "trivialaugment", "contrast"])
def test_by_masks_nothing_waits_and_no_call_depends_on_what_was_drawn(name, masked):
    counts = []
    for count in (40, 41, 300):
        augmented(name, scenes(count, 3, 16, 12))  # what is made once is made
        with Calls() as calls:
            augmented(name, scenes(count, 3, 16, 12))
        counts.append(calls.count)
        assert not {call for call in calls.count if call in WAITS}
    assert counts[0] == counts[1] == counts[2]


def test_inverted_is_255_less_and_identity_the_same():
    images = scenes(2, 3, 8, 8)
    chosen = torch.tensor([OPERATIONS.index("Invert"), OPERATIONS.index("Identity")])
    inverted = operate(images, chosen, torch.zeros(2), fill=0)
    assert torch.equal(inverted, torch.stack([255 - images[0], images[1]]))


@pytest.mark.parametrize("policy", ["autoaugment", "trivialaugment"])
def test_two_channels_are_refused_with_the_parameter(policy):
    with pytest.raises(ValueError, match=f"{policy} needs .* have 2: set it to false"):
        augmented(policy, scenes(2, 2, 8, 8))
