from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.engine.trainer import fit
from lt_pipeline.learning.methods.families.base import Method, MethodOptions
from lt_pipeline.learning.methods.more import More, MoreOptions, discrepancy, schedule_weight
from lt_pipeline.learning.models.low_rank import low_rank_parameters
from lt_pipeline.learning.models.network import ModelConfig
from lt_pipeline.learning.schema import UserError
from lt_pipeline.learning.transforms.augment import AugmentConfig
from toys import toy_card, toy_images

CPU = torch.device("cpu")
RESNET8 = ModelConfig(backbone="resnet8")
FULL = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 0.0]], dtype=torch.float64)
GENERAL = torch.tensor([[0.0, 2.0, 1.0], [0.5, 1.0, 0.0]], dtype=torch.float64)


def more(seed=0, **options):
    torch.manual_seed(seed)
    return More(MoreOptions(**options), RESNET8, toy_card())


def with_tail_weights(method):
    """Give B values, as training does: at B = 0 there is no discrepancy."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, p in low_rank_parameters(method.net):
            p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return method


def batch():
    data = toy_images()
    index = torch.arange(0, len(data), 4)
    return Batch(data.images[index], data.labels[index], index)


def test_equation_2_is_squared_and_summed_over_classes():
    assert discrepancy(FULL, GENERAL, "l2").tolist() == [1 + 0 + 4, 1.0]


def test_the_alternative_is_the_divergence_from_the_full_to_the_general_prediction():
    p, q = FULL.softmax(1), GENERAL.softmax(1)
    by_hand = [
        sum(a * math.log(a / b) for a, b in zip(row_p, row_q, strict=True))
        for row_p, row_q in zip(p.tolist(), q.tolist(), strict=True)
    ]
    assert discrepancy(FULL, GENERAL, "kl").tolist() == pytest.approx(by_hand)


def test_the_discrepancies_have_right_gradients():
    inputs = (FULL.clone().requires_grad_(), GENERAL.clone().requires_grad_())
    for kind in ("l2", "kl"):
        assert torch.autograd.gradcheck(lambda a, b, kind=kind: discrepancy(a, b, kind), inputs)


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 1.0])
def test_equation_5_and_the_two_other_schedules(progress):
    assert schedule_weight("sin", progress) == pytest.approx(math.sin(math.pi * progress))
    assert schedule_weight("cos", progress) == pytest.approx(math.cos(math.pi * progress / 2))
    assert schedule_weight("constant", progress) == 1.0


def test_equations_3_and_6_written_out():
    method = with_tail_weights(more(amplitude=1.5)).train()
    terms = method.loss(batch(), 0.25)
    images, labels = batch().images, batch().labels
    full = method.net(images)
    plain = with_tail_weights(more(amplitude=1.5)).train()
    with torch.no_grad():
        for name, p in low_rank_parameters(plain.net):
            if name.endswith(".up"):
                p.zero_()
    general = plain.net(images)
    prior = torch.tensor([40, 20, 10, 5]) / 75
    amplitude = 1.5 * 4  # A = A' * C
    gap = (full - general).square().sum(1)
    wanted = amplitude * math.sin(math.pi / 4) * (prior[labels] * gap).mean()
    torch.testing.assert_close(terms["rebalancing"], wanted)
    base = F.cross_entropy(full + prior.log(), labels)
    torch.testing.assert_close(terms["logit_adjustment"], base)


def test_both_passes_get_gradients_unless_told_otherwise():
    gradients = []
    for detach in (False, True):
        method = with_tail_weights(more(detach_general=detach)).train()
        method.loss(batch(), 0.5)["rebalancing"].backward()
        # behind the last pass's logits the head's bias cancels unless one of them is detached
        gradients.append(method.net.head.bias.grad.abs().sum().item())
    assert gradients[0] == pytest.approx(0, abs=1e-4)
    assert gradients[1] > 1e-2


@pytest.mark.parametrize("update", [False, True])
def test_the_general_pass_updates_batchnorm_only_when_told(update):
    method, base = (
        with_tail_weights(more(amplitude=a, update_batchnorm=update)).train() for a in (2.0, 0.0)
    )
    for m in (method, base):
        m.loss(batch(), 0.5)
    same = all(
        torch.equal(buffer, base.get_buffer(name))
        for name, buffer in method.named_buffers()
        if "running" in name or "tracked" in name
    )
    assert same is not update


def test_without_amplitude_the_decomposition_stays_and_the_loss_goes():
    method = more(amplitude=0)
    assert list(method.loss(batch(), 0.5)) == ["logit_adjustment"]
    assert len(list(low_rank_parameters(method.net))) > 0


def test_folding_leaves_the_plain_network_with_the_same_logits():
    plain = sum(p.numel() for p in more(amplitude=0).net.parameters())
    method = with_tail_weights(more()).double().eval()
    images = batch().images.double()
    with torch.no_grad():
        before = method.net.head(method.net.backbone(method.net.normalize(images).double()))
        method.merge_for_inference()
        after = method.net.head(method.net.backbone(method.net.normalize(images).double()))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-10)
    from lt_pipeline.learning.models.network import build_network

    reference = build_network(RESNET8, classes=4, channels=1, mean=[0.5], std=[0.25])
    assert method.net.state_dict().keys() == reference.state_dict().keys()
    folded = sum(p.numel() for p in method.net.parameters())
    assert folded == sum(p.numel() for p in reference.parameters()) < plain


def test_lora_trains_the_tail_weights_only_after_the_rest():
    config = TrainingConfig(
        epochs=2, batch_size=25, learning_rate=0.05, warmup_epochs=0,
        augment=AugmentConfig(crop_padding=0, flip=0.0),
    )  # fmt: skip
    method = more(amplitude=0, freeze_general_after=0.5)
    states, named = [], method.named_parameters
    fit(
        method, Stage("train", epochs=2), toy_images(), config, seed=0, device=CPU,
        report=lambda *_: states.append({n: p.detach().clone() for n, p in named()}),
    )  # fmt: skip
    start = dict(more(amplitude=0).named_parameters())
    low_rank = {f"net.{name}" for name, _ in low_rank_parameters(method.net)}
    general = {n for n in start if n.endswith("parametrizations.weight.original")}
    assert low_rank
    assert general
    assert all(torch.equal(states[0][n], start[n]) for n in low_rank)
    assert not any(torch.equal(states[0][n], start[n]) for n in general)
    assert all(torch.equal(states[1][n], states[0][n]) for n in general)
    assert any(not torch.equal(states[1][n], states[0][n]) for n in low_rank)


def test_weight_decay_of_the_tail_weights_is_a_choice():
    assert more().no_weight_decay() == ()
    method = more(decay_low_rank=False)
    alone = {id(p) for p in method.no_weight_decay()}
    assert alone == {id(p) for _, p in low_rank_parameters(method.net)}


def test_the_diagnosis_does_not_depend_on_the_order_of_the_training_images():
    """Batches of one class would say that many-shot classes are shifted more than they are."""
    method, data, test = with_tail_weights(more()), toy_images((96, 96, 96, 96)), toy_images(seed=1)
    mixed = data[torch.randperm(len(data), generator=torch.Generator().manual_seed(1))]
    by_class, shuffled = (method.diagnose(train, test, CPU) for train in (data, mixed))
    for group, value in by_class["logit_shift"].items():
        assert value == pytest.approx(shuffled["logit_shift"][group], rel=0.02)
    assert by_class["changed_predictions"].keys() == {"many", "medium", "few", "all"}


def test_without_a_tail_part_no_prediction_changes():
    diagnosis = more().diagnose(toy_images(), toy_images(seed=1), CPU)
    assert set(diagnosis["logit_shift"].values()) == {0.0}
    assert set(diagnosis["changed_predictions"].values()) == {0.0}


def test_a_stronger_penalty_leaves_less_of_the_tail_weights_on_head_classes():
    """What the loss is for: theta^t moves head logits least (table 4's order)."""
    config = TrainingConfig(
        epochs=20, batch_size=25, learning_rate=0.05, warmup_epochs=1, schedule="cosine",
        augment=AugmentConfig(crop_padding=0, flip=0.0),
    )  # fmt: skip
    shifts = []
    for amplitude in (0.0, 2.0):
        method = more(amplitude=amplitude, rank=0.5)
        fit(method, Stage("train", epochs=20), toy_images(), config, seed=0, device=CPU)
        shifts.append(method.diagnose(toy_images(), toy_images(seed=1), CPU)["logit_shift"])
    assert shifts[1]["many"] < shifts[0]["many"]


@pytest.mark.parametrize(
    "options",
    [{"rank": 0}, {"rank": 1}, {"amplitude": -1}, {"schedule": "tan"}, {"freeze_general_after": 1}],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        MoreOptions(**options)


def transformer(**options):
    pytest.importorskip("timm")
    torch.manual_seed(0)
    model = ModelConfig(backbone="vit_tiny_patch16_224")
    return More(MoreOptions(**options), model, toy_card(channels=3))


def test_a_vision_transformers_linear_layers_are_decomposed_and_its_classifier_is_not():
    method = transformer()
    names = {name.partition(".parametrizations")[0] for name, _ in low_rank_parameters(method.net)}
    blocks = [
        f"backbone.net.blocks.{k}.{layer}"
        for k in range(12)
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ]
    assert names == {*blocks, "backbone.net.patch_embed.proj"}
    convolutions = transformer(layers="convolutions")
    assert len(list(low_rank_parameters(convolutions.net))) == 2
    # r = int(0.1 * 192) = 19, of fc1 A is [19, 192] and B [768, 19]
    part = method.net.backbone.net.blocks[0].mlp.fc1.parametrizations.weight[0]
    assert (part.down.shape, part.up.shape) == ((19, 192), (768, 19))


def test_on_a_transformer_the_loss_is_that_of_equations_2_and_3_and_folding_is_exact():
    method = with_tail_weights(transformer(amplitude=1.5)).double().train()
    images = toy_images(channels=3, size=32)
    index = torch.arange(0, len(images), 12)
    seen = Batch(images.images[index], images.labels[index], index)
    progress = 0.3
    terms = method.loss(seen, progress)
    method.eval()
    with torch.no_grad():
        full = method.score(seen.images)
        general_net = transformer(amplitude=1.5).double().eval()  # B = 0: theta^g alone
        general = general_net.score(seen.images)
        assert not torch.allclose(full, general)
        prior = method.card.longtail.prior[seen.labels]
        amplitude = 1.5 * method.card.longtail.classes
        alpha = amplitude * math.sin(math.pi * progress)
        wanted = alpha * (prior * (full - general).square().sum(1)).mean()
        torch.testing.assert_close(terms["rebalancing"].detach(), wanted, rtol=1e-6, atol=0)
        method.merge_for_inference()
        torch.testing.assert_close(method.score(seen.images), full, rtol=0, atol=1e-12)
    assert method.net.state_dict().keys() == plain_transformer().state_dict().keys()


def plain_transformer():
    return Method(MethodOptions(), ModelConfig(backbone="vit_tiny_patch16_224"), toy_card()).net


def test_a_step_moves_a_transformers_b_first_as_l_base_alone_has_a_gradient_there():
    method = transformer().train()
    images = toy_images(channels=3, size=32)
    index = torch.arange(0, len(images), 12)
    seen = Batch(images.images[index], images.labels[index], index)
    sum(method.loss(seen, 0.5).values()).backward()
    for name, p in low_rank_parameters(method.net):
        assert (p.grad.abs().sum() > 0) == name.endswith(".up"), name


def test_a_backbone_without_such_layers_is_refused():
    with pytest.raises(UserError, match="options.layers is linear, but resnet8 has none: set all"):
        more(layers="linear")


def test_a_resnet_has_nothing_but_convolutions_to_decompose():
    states = [more(layers=layers).state_dict() for layers in ("all", "convolutions")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
