from __future__ import annotations

import hashlib

import pytest
import torch

from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.data.protocol import content_hash

IMAGES = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)


def test_float_images_are_refused():
    with pytest.raises(ValueError, match="must be uint8"):
        ImageSet(IMAGES.float(), torch.tensor([0, 0]), ("a",))


def test_labels_must_fit_in_number_and_type():
    with pytest.raises(ValueError, match=r"int64 \[2\]"):
        ImageSet(IMAGES, torch.tensor([0]), ("a",))


def test_a_label_without_a_class_is_refused():
    with pytest.raises(ValueError, match=r"0\.\.0, but range from 0 to 1"):
        ImageSet(IMAGES, torch.tensor([0, 1]), ("a",))


def test_selecting_keeps_images_with_their_labels(train):
    index = torch.tensor([3, 50, 0])
    chosen = train[index]
    assert torch.equal(chosen.images, train.images[index])
    assert torch.equal(chosen.labels, train.labels[index])


@pytest.mark.parametrize("count", [0, 7])
def test_the_hash_is_of_what_lies_in_memory(train, count):
    part = ImageSet(train.images[:count].flip(3), train.labels[:count], train.class_names)
    said = repr(((count, 1, 8, 8), train.class_names)).encode()
    raw = bytes(part.images.flatten().tolist()) + part.labels.numpy().astype("<i8").tobytes()
    assert content_hash(part) == hashlib.sha256(said + raw).hexdigest()


def test_the_hash_follows_images_labels_shape_and_names(train):
    same = ImageSet(train.images.clone(), train.labels.clone(), train.class_names)
    assert content_hash(same) == content_hash(train)
    changed = train.images.clone()
    changed[0, 0, 0, 0] ^= 1
    others = [
        ImageSet(changed, train.labels, train.class_names),
        ImageSet(train.images, train.labels.flip(0), train.class_names),
        ImageSet(train.images, train.labels, train.class_names[::-1]),
        ImageSet(train.images.view(-1, 1, 4, 16), train.labels, train.class_names),
    ]
    hashes = {content_hash(other) for other in others} | {content_hash(train)}
    assert len(hashes) == 5


def test_labels_are_one_an_image_or_each_there_or_not(train):
    images, names = train.images[:3], train.class_names
    several = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]], dtype=torch.uint8)
    data = ImageSet(images, several, names)
    assert torch.equal(data[torch.tensor([2, 0])].labels, several[[2, 0]])
    for wrong in (several.long(), several[:, :3], several[:2], several * 2):
        with pytest.raises(ValueError, match="labels must"):
            ImageSet(images, wrong, names)
