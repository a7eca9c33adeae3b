from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.data.distribution import LongTail, SplitGroups
from lt_pipeline.learning.data.profiles import Exponential, profile_counts
from lt_pipeline.learning.data.samplers import class_balanced
from lt_pipeline.learning.engine.checkpoint import ResumeFile
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.engine.trainer import fit
from lt_pipeline.learning.methods.darl import DARL, DarlOptions
from lt_pipeline.learning.methods.lgla import LGLA, LglaOptions
from lt_pipeline.learning.models.network import ModelConfig
from lt_pipeline.learning.transforms.mix import Mixed
from toys import toy_card, toy_images

CPU = torch.device("cpu")
MODEL = ModelConfig(backbone="resnet8", head="cosine", scale=30.0)
COUNTS = (10, 40, 5, 20)
MIXUP = {"mixup": True, "cutmix": False}


def create(**options):
    torch.manual_seed(0)
    return DARL(DarlOptions.model_validate(options), MODEL, toy_card(COUNTS)).train()


def batch(size=24):
    data = toy_images(COUNTS)
    index = torch.arange(0, len(data), 3)[:size]
    other = index.flip(0)
    pair = Batch(data.images[other], data.labels[other], other)
    return Batch(data.images[index], data.labels[index], index, pair=pair)


def seen_by_the_network(method, given):
    """The images of a step, their logits, and the mixtures."""
    state = torch.get_rng_state()
    caught = {}
    once = method.net.forward
    method.net.forward = lambda images: caught.setdefault(
        "logits", once(caught.setdefault("images", images))
    )
    terms = method.loss(given, 0.5)
    method.net.forward = once
    torch.set_rng_state(state)
    _, _, mixed = method._parts(given)
    return terms, caught["images"], caught["logits"], mixed


def test_without_balance_mixtures_and_ambiguity_it_is_lgla():
    torch.manual_seed(0)
    lgla = LGLA(LglaOptions(), MODEL, toy_card(COUNTS)).train()
    darl = create(balanced=0.0, mixed=0.0, ambiguity="none")
    assert darl.stages(darl.options) == (Stage("train"),)
    for (name, one), two in zip(
        lgla.loss(batch(), 0.5).items(), darl.loss(batch(), 0.5).values(), strict=True
    ):
        torch.testing.assert_close(one, two, msg=name)


@pytest.mark.parametrize("mode", ["softmax", "scaled_softmax", "constant", "none"])
@pytest.mark.parametrize("energy_of", ["expert", "fused"])
def test_the_loss_is_equations_3_7_8_and_9_image_by_image(mode, energy_of):
    method = create(
        mix=MIXUP, angular=False, ambiguity=mode, energy_of=energy_of, tau=3.0, prior="training"
    )
    given = batch()
    terms, images, logits, mixed = seen_by_the_network(method, given)
    z = logits.detach().double()
    size = len(z)
    assert size == 72
    torch.testing.assert_close(images[:24], given.images.float())
    torch.testing.assert_close(images[24:48], given.pair.images.float())
    lam = mixed.lam[0].item()
    blend = lam * given.images.float() + (1 - lam) * given.pair.images.float()
    torch.testing.assert_close(images[48:], blend)
    of = z if energy_of == "expert" else z.mean(1, keepdim=True).expand_as(z)
    energy = -3 * torch.log(torch.exp(of / 3).sum(2))
    soft = energy.exp() / energy.exp().sum(0)
    weight = {
        "softmax": 1 + soft, "scaled_softmax": 1 + size * soft,
        "constant": torch.full_like(soft, 2), "none": torch.ones_like(soft),
    }[mode]  # fmt: skip
    adjusted = z + weight[:, :, None] * method.shift.double()
    first = torch.cat([given.labels, given.pair.labels, given.labels])
    second = torch.cat([given.labels, given.pair.labels, given.pair.labels])
    for k, term in enumerate(terms.values()):
        one = F.cross_entropy(adjusted[:, k], first, reduction="none")
        two = F.cross_entropy(adjusted[:, k], second, reduction="none")
        wanted = torch.cat([one[:48], lam * one[48:] + (1 - lam) * two[48:]]).mean()
        assert term.item() == pytest.approx(wanted.item(), rel=1e-4)


def test_angles_of_either_label_of_a_mixture_are_compared_with_those_of_plain_images():
    method = create(mix=MIXUP, ambiguity="none", balanced=0.0, prior="training")
    given = batch()
    terms, _, logits, mixed = seen_by_the_network(method, given)
    z, cut = logits.detach().double(), 24
    groups = [{1}, {0, 2, 3}]

    def angle(i, k, y):
        return math.acos(z[i, k, y].item() / 30)

    def weight(i, k, y):
        mine = next(g for g in groups if y in g)
        mates = [angle(j, k, c) for j, c in enumerate(given.labels.tolist()) if c in mine]
        return 1 + max(0.0, angle(i, k, y) - sum(mates) / len(mates))

    adjusted = z + method.shift.double()
    for k, term in enumerate(terms.values()):
        log_p = adjusted[:, k].log_softmax(1)
        total = sum(-weight(i, k, y) * log_p[i, y] for i, y in enumerate(given.labels.tolist()))
        for i, (one, two) in enumerate(
            zip(mixed.first.tolist(), mixed.second.tolist(), strict=True)
        ):
            lam = mixed.lam[i].item()
            total -= lam * weight(cut + i, k, one) * log_p[cut + i, one]
            total -= (1 - lam) * weight(cut + i, k, two) * log_p[cut + i, two]
        assert term.item() == pytest.approx(total.item() / 48, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, (24, 24, 24)),
        ({"original": 0.5, "balanced": 0.25, "mixed": 0.25}, (12, 6, 6)),
        ({"mixed": 0.0}, (24, 24, 0)),
        ({"mix": {"mixup": False, "cutmix": False}}, (24, 24, 0)),
        ({"balanced": 0.0, "pairs": "original"}, (24, 0, 24)),
        ({"original": 0.01}, (1, 24, 24)),
    ],
)
def test_shares_are_of_the_batch_size(options, sizes):
    method = create(**options)
    assert method._sizes(batch()) == sizes
    plain, labels, mixed = method._parts(batch())
    assert (len(plain), len(labels), len(mixed.images)) == (sizes[0] + sizes[1],) * 2 + sizes[2:]
    (stage,) = method.stages(method.options)
    wants = sizes[1] > 0 or (sizes[2] > 0 and method.options.pairs == "balanced")
    assert stage.pair is (class_balanced if wants else None)


def test_pairs_of_the_original_draw_are_other_images_of_it():
    method, given = create(pairs="original", balanced=0.0, mix=MIXUP), batch()
    _, _, mixed = method._parts(given._replace(pair=None))
    torch.testing.assert_close(mixed.second, given.labels.roll(1))
    lam = mixed.lam[0].item()
    wanted = lam * given.images.float() + (1 - lam) * given.images.roll(1, 0).float()
    torch.testing.assert_close(mixed.images, wanted)


def test_a_batch_without_a_pair_is_refused():
    with pytest.raises(ValueError, match="must bring a balanced pair"):
        create().loss(batch()._replace(pair=None), 0.5)


@pytest.mark.parametrize("detach", [True, False])
def test_the_ambiguity_weight_passes_gradients_on_only_where_told(detach):
    method = create(detach=detach)
    logits = torch.randn(6, 3, 4, requires_grad=True)
    _, weight = method.ambiguity_weight(logits, torch.zeros(6).long(), 6)
    assert weight.requires_grad is not detach


def test_class_means_are_moved_by_unmixed_images_only():
    method = create(ambiguity="class_means", momentum=0.5, tau=1.0)
    start = method.class_energy.clone()
    logits = torch.randn(6, 3, 4)
    labels = torch.tensor([0, 0, 1, 2, 2, 3])
    _, weight = method.ambiguity_weight(logits, labels, 3)
    energy = -logits.logsumexp(2)
    moved = method.class_energy
    torch.testing.assert_close(moved[:, 0], 0.5 * start[:, 0] + 0.5 * energy[:2].mean(0))
    torch.testing.assert_close(moved[:, 1], 0.5 * start[:, 1] + 0.5 * energy[2])
    torch.testing.assert_close(moved[:, 2:], start[:, 2:])
    wanted = 1 + 4 * moved.softmax(1)[:, labels].T
    torch.testing.assert_close(weight, wanted)
    method.eval()
    method.ambiguity_weight(logits, labels, 3)
    assert method.class_energy is moved


def test_what_is_followed_is_of_the_long_tailed_draw():
    method = create(ambiguity="constant", constant=3.0, original=0.5)
    method.loss(batch(), 0.5)
    assert method.sums[0].tolist() == torch.bincount(batch().labels[:12], minlength=4).tolist()
    torch.testing.assert_close(method.sums[2], 2 * method.sums[0])


def test_the_note_says_which_imbalance_a_step_shows():
    # counts 5 to 40 of 75: (8/15 + 1/4 + (8/15 + 1/4) / 2) / (1/15 + 1/4 + (1/15 + 1/4) / 2)
    noted = create(mix=MIXUP, prior="training").notes()[-1]
    assert "have an imbalance of 2.5, the adjustment is for 8.0" in noted
    # CutMix leaves .679 of the first image: (8/15 + 1/4 + .679 * 8/15 + .321 / 4) over
    # (1/15 + 1/4 + .679 / 15 + .321 / 4)
    assert "imbalance of 2.8," in create(mix={"mixup": False, "cutmix": True}).notes()[-1]
    assert "imbalance of 8.0" in create(balanced=0.0, mixed=0.0).notes()[-1]
    # an equal share of both draws: (8/15 + 1/4) / (1/15 + 1/4)
    parts = create(prior="parts", mix=MIXUP).notes()[-1]
    assert parts.endswith("the adjustment is for 8.0 as drawn, 1.0 balanced, 2.5 mixed")
    alone = create(prior="parts", balanced=0.0, pairs="original").notes()[-1]
    assert alone.endswith("imbalance of 8.0, the adjustment is for 8.0 as drawn, 8.0 mixed")


@pytest.mark.parametrize("ambiguity", ["softmax", "class_means"])
def test_a_killed_run_ends_with_the_same_weights(tmp_path, ambiguity):
    config = TrainingConfig(
        epochs=3, batch_size=25, learning_rate=0.05, warmup_epochs=1, schedule="cosine",
        augment={"crop_padding": 1, "flip": 0.5}, checkpoint_every=0,
    )  # fmt: skip

    def run(method, resume=None, report=None):
        (stage,) = method.stages(method.options)
        fit(
            method, stage, toy_images(COUNTS), config, seed=1, device=CPU, resume=resume,
            report=report,
        )  # fmt: skip
        return method.state_dict()

    def stop(stage, epoch, values):
        if epoch == 2:
            raise KeyboardInterrupt

    whole = run(create(ambiguity=ambiguity))
    file = ResumeFile(tmp_path / "train.pt", "f")
    with pytest.raises(KeyboardInterrupt):
        run(create(ambiguity=ambiguity), file, stop)
    resumed = run(create(ambiguity=ambiguity), file)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_bfloat16_gives_float32_terms_and_energies():
    method = create(ambiguity="class_means")
    with torch.autocast("cpu", torch.bfloat16):
        terms = method.loss(batch(), 0.5)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert method.class_energy.dtype == torch.float32


def test_the_adjustment_can_be_for_the_labels_that_a_step_shows():
    method = create(prior="step", mix=MIXUP, tau_global=2.0)
    prior = torch.tensor(COUNTS).double() / 75
    seen = (prior + 0.25 + (prior + 0.25) / 2) / 3
    torch.testing.assert_close(method.step_prior(), seen)
    torch.testing.assert_close(method.shift[-1], (2 * seen.log()).float())
    # class 1 alone is the first local expert's, the most frequent class for either prior
    torch.testing.assert_close(method.shift[0], seen[1].log().float().expand(4))
    assert "imbalance of 2.5, the adjustment is for 2.5" in method.notes()[-1]
    plain = create(prior="step", balanced=0.0, mixed=0.0)
    torch.testing.assert_close(plain.shift, create().shift)


def log_shifts(prior, tau_global=2.5):
    """What the three experts add for ``prior``, from its definition; class 1 is the first group."""
    top = max(prior)
    one = [math.log(p if c == 1 else top) for c, p in enumerate(prior)]
    two = [math.log(top if c == 1 else p) for c, p in enumerate(prior)]
    return [one, two, [tau_global * math.log(p) for p in prior]]


@pytest.mark.parametrize("pairs", ["balanced", "original"])
@pytest.mark.parametrize("both", ["alternate", "halves"])
def test_by_parts_every_image_is_adjusted_for_the_labels_of_its_own_draw(pairs, both):
    method = create(
        prior="parts", pairs=pairs, mix={"both": both}, angular=False, ambiguity="constant",
        constant=1.5, original=0.5,
    )  # fmt: skip
    terms, _, logits, mixed = seen_by_the_network(method, batch())
    z, own, plain = logits.detach().double(), 12, 36
    _, labels, _ = method._parts(batch())
    total = [0.0] * 3
    for i in range(len(z)):
        lam = 1.0 if i < own else 0.0 if i < plain else mixed.lam[i - plain].item()
        tailed = 1.0 if i >= plain and pairs == "original" else lam
        shifts = log_shifts([tailed * n / 75 + (1 - tailed) / 4 for n in COUNTS])
        for k in range(3):
            scores = [z[i, k, c].item() + 1.5 * shifts[k][c] for c in range(4)]
            log_sum = math.log(sum(math.exp(v) for v in scores))
            if i < plain:
                total[k] += log_sum - scores[labels[i]]
            else:
                first, second = mixed.first[i - plain], mixed.second[i - plain]
                total[k] += log_sum - lam * scores[first] - (1 - lam) * scores[second]
    assert mixed.lam.unique().numel() == (2 if both == "halves" else 1)
    for term, wanted in zip(terms.values(), total, strict=True):
        assert term.item() == pytest.approx(wanted / len(z), rel=1e-4)


def test_by_parts_the_long_tailed_draw_alone_is_adjusted_for_the_training_set():
    alone = {"balanced": 0.0, "mixed": 0.0}
    parts, training = (create(prior=prior, **alone) for prior in ("parts", "training"))
    for (name, one), two in zip(
        parts.loss(batch(), 0.5).items(), training.loss(batch(), 0.5).values(), strict=True
    ):
        torch.testing.assert_close(one, two, msg=name)


def test_by_parts_the_balanced_draw_gets_plain_cross_entropy():
    method, logits = create(prior="parts"), torch.randn(5, 3, 4)
    shift = method.step_shifts(0, 5, torch.empty(0))
    torch.testing.assert_close(shift, shift[..., :1].expand_as(shift))
    labels = torch.tensor([0, 1, 2, 3, 1])
    plain = F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(3))
    adjusted = (logits + shift).flatten(0, 1)
    torch.testing.assert_close(F.cross_entropy(adjusted, labels.repeat_interleave(3)), plain)


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_a_mixture_that_is_all_of_one_image_counts_as_that_image(lam, monkeypatch):
    method, given = create(prior="parts", angular=False, balanced=0.0), batch()
    chosen = given if lam else given.pair
    ends = Mixed(chosen.images.float(), given.labels, given.pair.labels, torch.full((24,), lam))
    monkeypatch.setattr(method, "_mixture", lambda one, other: ends)
    mixed = method.loss(given, 0.5)
    if lam:  # the draw twice over
        given = Batch(*(torch.cat([part, part]) for part in given[:3]))
    plainly = create(prior="parts", angular=False, mixed=0.0, balanced=1 - lam)
    for (name, one), two in zip(mixed.items(), plainly.loss(given, 0.5).values(), strict=True):
        torch.testing.assert_close(one, two, msg=name)


@pytest.mark.parametrize(
    ("counts", "third", "tau_global", "wanted"),
    [
        ((100, 500), 33, 2.5, {"lgla": 0.53, "training": 2.53, "step": 0.19, "parts": 0.25}),
        ((10, 5000), 3, 3.0, {"lgla": 1.19, "training": 3.53, "step": 0.42, "parts": 0.56}),
    ],
)
def test_the_note_says_whom_the_adjustment_favours_on_long_tailed_cifar(
    counts, third, tau_global, wanted
):
    classes, most = counts
    sizes = profile_counts(Exponential(), classes=classes, max_per_class=most, imbalance_ratio=100)
    thirds = SplitGroups(rule="split", sizes=(third, classes - 2 * third, third))
    card = replace(toy_card(sizes), longtail=LongTail.from_counts(sizes, groups=thirds))

    def noted(kind, **options):
        method = kind(kind.Options(tau_global=tau_global, **options), MODEL, card)
        (nats,) = re.findall(r"over many-shot ones by (\S+) nats", " ".join(method.notes()))
        return float(nats)

    notes = {"lgla": noted(LGLA), **{p: noted(DARL, prior=p) for p in [*wanted][1:]}}
    assert notes == pytest.approx(wanted, abs=0.011)
    # LGLA's is what DARL has without its draws, and twice the adjustment adds its own share again
    alone = {"balanced": 0.0, "mixed": 0.0}
    assert noted(DARL, prior="parts", **alone) == notes["lgla"]
    none = noted(DARL, **alone, ambiguity="constant", constant=0.0)
    twice = noted(DARL, **alone, ambiguity="constant", constant=2.0)
    assert twice == pytest.approx(2 * notes["lgla"] - none, abs=0.02)


def test_many_steps_show_the_labels_that_are_expected_of_them():
    method = create(mix={"alpha": 0.7})
    data = toy_images(COUNTS)
    generator, total = torch.Generator().manual_seed(0), torch.zeros(4).double()
    for _ in range(400):
        one = torch.randperm(75, generator=generator)[:24]
        other = class_balanced(data.labels, generator)[:24]
        pair = Batch(data.images[other], data.labels[other], other)
        given = Batch(data.images[one], data.labels[one], one, pair=pair)
        _, labels, mixed = method._parts(given)
        total += torch.bincount(labels, minlength=4)
        for names, lam in ((mixed.first, mixed.lam), (mixed.second, 1 - mixed.lam)):
            total.index_add_(0, names, lam.double())
    # 8 x 8 images: a CutMix box is of whole pixels
    torch.testing.assert_close(total / total.sum(), method.step_prior(), atol=0.01, rtol=0)
