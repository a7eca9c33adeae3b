"""Augmentation as one kernel: on a CPU in Triton's interpreter, and as PyTorch does it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lt_pipeline.learning.transforms import augment as module
from lt_pipeline.learning.transforms import autoaugment, trivialaugment
from lt_pipeline.learning.transforms.augment import (
    AugmentConfig,
    Drawn,
    apply,
    augment,
    draw,
    has_kernel,
    has_triton,
)
from lt_pipeline.learning.transforms.operations import OPERATIONS, SIGNED
from toys import scenes, seeded

WHOLE = {"crop_padding": 3, "flip": 0.5, "cutout": 7}
# Interpreted is what was so when triton was imported.
RUN = """
import sys, torch
from lt_pipeline.learning.transforms import kernel
from lt_pipeline.learning.transforms.augment import AugmentConfig, Drawn
cases = torch.load(sys.argv[1])
torch.save([kernel.apply(x, Drawn(*d), AugmentConfig(**c)) for x, d, c in cases], sys.argv[2])
"""


def every_operation():
    """Return draws of each operation at a small and at a large strength, either way."""
    spans = {**autoaugment.spans(12, 10), **trivialaugment.SPANS}
    found = [
        (OPERATIONS.index(name), sign * (low + share * (high - low)))
        for name, (low, high) in spans.items()
        for share in (0.31, 0.97)
        for sign in ((1, -1) if name in SIGNED else (1,))
    ]
    operation, size = zip(*found, strict=True)
    return Drawn(operation=torch.tensor([operation]), size=torch.tensor([size]))


def cases():
    """Return what is augmented: images, what they have drawn, and by which parameters."""
    operations, plain = every_operation(), dict.fromkeys(("crop_padding", "flip", "cutout"), 0)
    count = operations.size.shape[1]
    for shape in ((count, 3, 12, 10), (count, 1, 17, 16)):
        yield scenes(*shape), operations, plain
    flat = torch.full((count, 3, 2, 9), 77, dtype=torch.uint8)
    yield flat, operations, plain
    for seed, (name, shape) in enumerate([
        ("autoaugment", (32, 3, 32, 32)),
        ("trivialaugment", (16, 3, 13, 24)),
        ("autoaugment", (8, 1, 28, 28)),
    ]):  # fmt: skip
        how = {**WHOLE, name: True, "autoaugment_fill": 90}
        yield scenes(*shape), draw(shape, AugmentConfig(**how), seeded(seed)), how
    for how in (WHOLE, {**WHOLE, "cutout": 0}, {**plain, "flip": 0.5}, {**plain, "cutout": 5}):
        images = scenes(6, 9, 11, 3).permute(0, 3, 1, 2)  # in no usual order
        yield images, draw(images.shape, AugmentConfig(**how), seeded(1)), how


def check(found, expected, drawn, halves=0.0):
    """Check that it is what is expected to as many grey levels as it has had operations.

    One can round a half to either level, which the next can spread. ``halves`` are the share of
    pixels from a place between two, which can be either's.
    """
    gap = (found.int() - expected.int()).abs()
    steps = 0 if drawn.size is None else len(drawn.size)
    assert (found.dtype, found.shape) == (torch.uint8, expected.shape)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert float((gap > 0).float().mean()) < 0.002 * steps + 1e-9
    assert float((gap > 1).float().mean()) < 0.0005 * (steps > 1) + halves + 1e-9


@pytest.mark.slow
def test_interpreted_the_kernel_does_what_pytorch_does_to_a_grey_level(tmp_path):
    pytest.importorskip("triton")
    asked = [(images, tuple(drawn), config) for images, drawn, config in cases()]
    torch.save(asked, tmp_path / "asked")
    words = [sys.executable, "-c", RUN, str(tmp_path / "asked"), str(tmp_path / "found")]
    subprocess.run(words, check=True, env={**os.environ, "TRITON_INTERPRET": "1"})
    for (images, drawn, config), found in zip(asked, torch.load(tmp_path / "found"), strict=True):
        check(found, apply(images, Drawn(*drawn), AugmentConfig(**config)), Drawn(*drawn))


@pytest.mark.slow
@pytest.mark.parametrize("side", [32, 64])
def test_it_becomes_code_of_an_h100_that_spills_no_registers(side, tmp_path):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    from lt_pipeline.learning.transforms import kernel

    pixels = side * side
    shapes = {"steps": 2, "channels": 3, "height": side, "width": side, "pixels": pixels}
    kinds = dict.fromkeys(kernel._augment.arg_names, "i32") | dict.fromkeys(shapes, "constexpr")
    kinds |= dict.fromkeys(("images", "found", "mirrored"), "*u8") | {"sizes": "*fp32"}
    kinds |= dict.fromkeys(("corner", "operations", "centre"), "*i64")
    source = triton.compiler.ASTSource(kernel._augment, kinds, shapes)
    options = {"num_warps": pixels // 256, "enable_fp_fusion": False}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    (tmp_path / "cubin").write_bytes(made.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    told = subprocess.check_output([tool, "--dump-resource-usage", tmp_path / "cubin"], text=True)
    registers, stack = (int(re.search(rf"{name}:(\d+)", told)[1]) for name in ("REG", "STACK"))
    assert registers * 32 * made.metadata.num_warps <= 65536, "what a multiprocessor has"
    assert stack <= 32, "what sine and cosine of large angles take"
    assert made.metadata.shared == 4 * pixels, "one channel at a time"


@pytest.mark.parametrize("policy", ["autoaugment", "trivialaugment"])
def test_where_there_is_a_kernel_it_has_what_pytorch_would_have(policy, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "has_triton", lambda device: True)
    monkeypatch.setattr(module, "in_a_kernel", lambda *asked: seen.append(asked) or apply(*asked))
    images = scenes(20, 3, 16, 16)
    plain = AugmentConfig(**WHOLE, **{policy: True})
    photos = plain.model_copy(update={"crop_scale": (0.5, 1.0), "hue": 0.1})
    found = [augment(images, config, seeded()) for config in (plain, photos)]
    drawn = [asked[1] for asked in seen]
    assert None not in drawn[0]
    assert drawn[1].corner is drawn[1].mirrored is None, "that has been done"
    monkeypatch.undo()
    for config, one in zip((plain, photos), found, strict=True):
        assert torch.equal(one, augment(images, config, seeded()))


def test_small_images_on_a_gpu_with_triton_have_a_kernel(monkeypatch):
    assert not has_kernel(torch.empty(8, 3, 64, 64)), "a CPU"
    monkeypatch.setattr(module, "has_triton", lambda device: True)
    assert has_kernel(torch.empty(8, 3, 64, 64))
    assert has_kernel(torch.empty(8, 1, 28, 28))
    assert not has_kernel(torch.empty(8, 3, 65, 64))
    assert not has_kernel(torch.empty(8, 4, 32, 32))


def test_triton_may_be_missing(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert not has_triton.__wrapped__(torch.device("cuda"))


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_gpu(drawn):
    return Drawn(*(part if part is None else part.cuda() for part in drawn))


@pytest.mark.gpu
@gpu
def test_on_a_gpu_the_kernel_does_what_pytorch_does_to_a_grey_level():
    from lt_pipeline.learning.transforms import kernel

    more = []
    for side, policy in ((32, "autoaugment"), (64, "autoaugment"), (32, "trivialaugment")):
        how = {**WHOLE, policy: True}
        images = scenes(2000, 3, side, side)
        more.append((images, draw(images.shape, AugmentConfig(**how), seeded(side)), how))
    for images, drawn, config in (*cases(), *more):
        there, how = images.cuda(), AugmentConfig(**config)
        found = kernel.apply(there, on_gpu(drawn), how).cpu()
        check(found, apply(there, on_gpu(drawn), how).cpu(), drawn)
        check(found, apply(images, drawn, how), drawn, halves=0.001)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("side", [32, 80])
@pytest.mark.parametrize("policy", ["autoaugment", "trivialaugment"])
def test_on_a_gpu_nothing_waits_for_the_host(policy, side):
    images = scenes(300, 3, side, side).cuda()
    generator = torch.Generator("cuda").manual_seed(0)
    config = AugmentConfig(**WHOLE, **{policy: True})
    augment(images, config, generator)  # tables are there, and the kernel is compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = augment(images, config, generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.is_contiguous(memory_format=torch.channels_last) == (side == 32)
