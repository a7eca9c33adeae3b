"""Augmentation as one kernel: on a CPU in Triton's interpreter, and as PyTorch does it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lt_pipeline.learning.transforms import augment as module
from lt_pipeline.learning.transforms import autoaugment, trivialaugment, views
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
from lt_pipeline.learning.transforms.proof import kernels_agree
from lt_pipeline.learning.transforms.views import (
    View,
    ViewConfig,
    apply_view,
    draw_view,
    random_view,
)
from toys import scenes, seeded

PLAIN = dict.fromkeys(("crop_padding", "flip", "cutout"), 0)
WHOLE = {"crop_padding": 3, "flip": 0.5, "cutout": 7}
STILL = {"crop_scale": (1, 1), **dict.fromkeys(("flip", "jitter", "grayscale", "blur"), 0)}
VIEW = ViewConfig(crop_scale=(0.2, 1.0), flip=0.5, grayscale=0.2, blur_sigma=(0.1, 2.0))
# Interpreted is what was so when triton was imported.
RUN = """
import sys, torch
from lt_pipeline.learning.transforms import kernel, view_kernel
from lt_pipeline.learning.transforms.proof import kernels_agree
plain, seen = torch.load(sys.argv[1], weights_only=False)
results = [kernel.apply(*asked) for asked in plain], [view_kernel.apply(*asked) for asked in seen]
torch.save((*results, kernels_agree(torch.device("cpu"), 16, 20)), sys.argv[2])
"""


def on(drawn, change):
    """Return what is ``drawn`` with a change of each of its tensors."""
    return tree_map(lambda part: change(part) if isinstance(part, Tensor) else part, drawn)


def every_operation():
    """Return draws of each operation at a small and at a large strength, either way."""
    spans = {**autoaugment.spans(12, 10), **trivialaugment.SPANS}
    rows = [
        (OPERATIONS.index(name), sign * (low + share * (high - low)))
        for name, (low, high) in spans.items()
        for share in (0.31, 0.97)
        for sign in ((1, -1) if name in SIGNED else (1,))
    ]
    operation, size = zip(*rows, strict=True)
    return Drawn(operation=torch.tensor([operation]), size=torch.tensor([size]))


def cases():
    """Yield what is augmented: images, what they have drawn, and by which parameters."""
    operations, none = every_operation(), AugmentConfig(**PLAIN)
    some = on(operations, lambda part: part[:, ::3])
    count, few = operations.size.shape[1], some.size.shape[1]
    yield scenes(count, 3, 12, 10), operations, none
    yield scenes(few, 1, 17, 16), some, none
    yield torch.full((few, 1, 2, 9), 77, dtype=torch.uint8), some, none
    for seed, (name, shape) in enumerate([
        ("autoaugment", (8, 3, 32, 32)),
        ("trivialaugment", (6, 3, 13, 24)),
        ("autoaugment", (3, 1, 28, 28)),
    ]):  # fmt: skip
        config = AugmentConfig(**WHOLE, **{name: True}, autoaugment_fill=90)
        yield scenes(*shape), draw(shape, config, seeded(seed)), config
    for how in (WHOLE, {**WHOLE, "cutout": 0}, {**PLAIN, "flip": 0.5}, {**PLAIN, "cutout": 5}):
        images = scenes(4, 9, 11, 3).permute(0, 3, 1, 2)  # in no usual order
        config = AugmentConfig(**how)
        yield images, draw(images.shape, config, seeded(1)), config


def seen():
    """Yield images, and the views of them that they have drawn."""
    jitter = {"jitter": 1, **dict.fromkeys(("brightness", "contrast", "saturation"), 0)}
    for count, changes in (
        (5, None),
        (3, {"flip": 0.5}),
        (3, {"crop_scale": (0.1, 0.9)}),
        (4, {"jitter": 0.8, "hue": 0}),
        (3, {**jitter, "hue": 0.4}),
        (3, {"grayscale": 0.5}),
        (3, {"blur": 0.7, "blur_sigma": (0.1, 1.5)}),
    ):
        config = VIEW if changes is None else ViewConfig(**{**STILL, **changes})
        for shape in ((count, 3, 13, 12), (2, 1, 3, 16)):
            yield scenes(*shape), draw_view(scenes(*shape), config, seeded(3))


def check(result, expected, steps, halves=0.0):
    """Check that it is what is expected to as many grey levels as it has had ``steps``.

    One can round a half to either level, which the next can spread. ``halves`` are the share of
    pixels from a place between two, which can be either's.
    """
    gap = (result.int() - expected.int()).abs()
    assert (result.dtype, result.shape) == (torch.uint8, expected.shape)
    assert result.is_contiguous(memory_format=torch.channels_last)
    pixels = gap.numel()
    assert int((gap > 0).sum()) <= (0.003 * pixels + 2) * steps + halves * pixels
    assert int((gap > 1).sum()) <= 0.0005 * pixels * (steps > 1) + halves * pixels


def steps_of(drawn):
    return 0 if drawn.size is None else len(drawn.size)


@pytest.mark.slow
def test_interpreted_the_kernels_do_what_pytorch_does_to_a_grey_level(tmp_path):
    pytest.importorskip("triton")
    asked = [*cases()], [*seen()]
    torch.save(asked, tmp_path / "asked")
    words = [sys.executable, "-c", RUN, str(tmp_path / "asked"), str(tmp_path / "results")]
    subprocess.run(words, check=True, env={**os.environ, "TRITON_INTERPRET": "1"})
    augmented, views_of, proven = torch.load(tmp_path / "results")
    assert proven
    for (images, drawn, config), result in zip(asked[0], augmented, strict=True):
        check(result, apply(images, drawn, config), steps_of(drawn))
    for (images, drawn), result in zip(asked[1], views_of, strict=True):
        check(result, apply_view(images, drawn), 1)


KINDS = {
    **dict.fromkeys(("images", "result", "mirrored", "grey", "applied"), "*u8"),
    **dict.fromkeys(("corner", "operations", "centre", "boxes", "kinds"), "*i64"),
    **dict.fromkeys(("sizes", "factors", "hue", "sigma"), "*fp32"),
}


COLOURS = ("factors", "hue", "kinds", "applied")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "changes", "absent"),
    [
        (32, {"steps": 2}, ()),
        (64, {"steps": 2}, ()),
        (32, {"steps": 0}, ("mirrored", "operations", "sizes", "centre")),
        (32, {"steps": 1}, ("corner",)),
        (32, {"reach": 3}, ()),
        (64, {"reach": 3}, ()),
        (32, {"reach": 0}, ("mirrored", "grey", "sigma", *COLOURS)),
        (32, {"reach": 0}, ("mirrored", "grey", "sigma", "boxes")),
        (32, {"reach": 3}, ("boxes", *COLOURS)),
    ],
)
def test_they_become_code_of_an_h100_that_keeps_an_image_in_registers(
    side, changes, absent, tmp_path
):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    from lt_pipeline.learning.transforms import kernel, view_kernel

    made_of = kernel._augment if "steps" in changes else view_kernel._view
    sizes = {"channels": 3, "height": side, "width": side, "pixels": side * side}
    constants = {**sizes, **changes, **dict.fromkeys(absent)}
    kinds = {name: KINDS.get(name, "i32") for name in made_of.arg_names}
    source = triton.compiler.ASTSource(
        made_of, kinds | dict.fromkeys(constants, "constexpr"), constants
    )
    options = {"num_warps": side * side // 256, "enable_fp_fusion": False}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    (tmp_path / "cubin").write_bytes(made.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    told = subprocess.check_output([tool, "--dump-resource-usage", tmp_path / "cubin"], text=True)
    registers, stack = (int(re.search(rf"{name}:(\d+)", told)[1]) for name in ("REG", "STACK"))
    assert registers * 32 * made.metadata.num_warps <= 65536, "what a multiprocessor has"
    assert stack <= 32, "what sine and cosine of large angles take"
    assert made.metadata.shared <= 4 * side * side, "one channel at a time"


@pytest.fixture
def asked(monkeypatch):
    """Return what kernels are asked for, which PyTorch then does."""
    calls = []
    monkeypatch.setattr(module, "has_triton", lambda device: True)
    for room, ours in ((module, apply), (views, apply_view)):
        monkeypatch.setattr(
            room, "in_a_kernel", lambda *given, ours=ours: calls.append(given) or ours(*given)
        )
    return calls


@pytest.mark.parametrize("policy", ["autoaugment", "trivialaugment"])
def test_where_there_are_kernels_they_have_what_pytorch_would_have(policy, asked, monkeypatch):
    images = scenes(20, 3, 16, 16)
    plain = AugmentConfig(**WHOLE, **{policy: True})
    photos = plain.model_copy(update={"crop_scale": (0.5, 1.0), "hue": 0.1})
    augmented = [augment(images, config, seeded()) for config in (plain, photos)]
    drawn, box, jitter, rest = (given[1] for given in asked)
    assert None not in drawn
    assert box._replace(boxes=None) == jitter._replace(jitter=None) == View()
    assert rest.corner is rest.mirrored is None, "that has been done"
    monkeypatch.undo()
    for config, one in zip((plain, photos), augmented, strict=True):
        assert torch.equal(one, augment(images, config, seeded()))


def test_a_view_is_one_kernel(asked, monkeypatch):
    images = scenes(20, 3, 16, 16)
    view = random_view(images, VIEW, seeded())
    ((_, drawn),) = asked
    assert None not in drawn
    monkeypatch.undo()
    assert torch.equal(view, random_view(images, VIEW, seeded()))


def test_small_images_on_a_gpu_with_triton_have_a_kernel(monkeypatch):
    assert not has_kernel(torch.empty(8, 3, 64, 64)), "a CPU"
    monkeypatch.setattr(module, "has_triton", lambda device: True)
    assert has_kernel(torch.empty(8, 3, 64, 64))
    assert has_kernel(torch.empty(8, 1, 28, 28))
    assert not has_kernel(torch.empty(8, 3, 65, 64))
    assert not has_kernel(torch.empty(8, 4, 32, 32))


def test_kernels_that_do_otherwise_or_nothing_are_not_used(monkeypatch, caplog):
    pytest.importorskip("triton")
    from lt_pipeline.learning.transforms import kernel, view_kernel

    def without_compiler(*given):
        raise RuntimeError("Failed to find C compiler.\nPlease specify one")

    monkeypatch.setattr(view_kernel, "apply", apply_view)
    for does, why in ((lambda images, *given: images, "come out as"), (without_compiler, "Failed")):
        monkeypatch.setattr(kernel, "apply", does)
        assert not kernels_agree(torch.device("cpu"), 4, 16)
        assert why in caplog.messages[-1]
    monkeypatch.setattr(kernel, "apply", apply)
    assert kernels_agree(torch.device("cpu"), 4, 16)


def test_triton_may_be_missing(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert not has_triton.__wrapped__(torch.device("cuda"))


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_gpu(drawn):
    return on(drawn, Tensor.cuda)


@pytest.mark.gpu
@gpu
def test_on_a_gpu_the_kernels_do_what_pytorch_does_to_a_grey_level():
    from lt_pipeline.learning.transforms import kernel, view_kernel

    more = []
    for side, policy in ((32, "autoaugment"), (64, "autoaugment"), (32, "trivialaugment")):
        config = AugmentConfig(**WHOLE, **{policy: True})
        images = scenes(2000, 3, side, side)
        more.append((images, draw(images.shape, config, seeded(side)), config))
    for images, drawn, config in (*cases(), *more):
        there, own = images.cuda(), on_gpu(drawn)
        result = kernel.apply(there, own, config)
        check(result, apply(there, own, config), steps_of(drawn))
        check(result.cpu(), apply(images, drawn, config), steps_of(drawn), halves=0.001)
    for images, drawn in seen():
        result = view_kernel.apply(images.cuda(), on_gpu(drawn))
        check(result, apply_view(images.cuda(), on_gpu(drawn)), 1)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("side", [32, 80])
@pytest.mark.parametrize("policy", ["autoaugment", "trivialaugment", "view"])
def test_on_a_gpu_nothing_waits_for_the_host(policy, side):
    images = scenes(300, 3, side, side).cuda()
    generator = torch.Generator("cuda").manual_seed(0)

    def treated():
        if policy == "view":
            return random_view(images, VIEW, generator)
        return augment(images, AugmentConfig(**WHOLE, **{policy: True}), generator)

    treated()  # tables are there, and kernels are compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = treated()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.is_contiguous(memory_format=torch.channels_last) == (side == 32)
