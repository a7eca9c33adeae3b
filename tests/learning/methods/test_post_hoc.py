"""Post-hoc logit adjustment against equation 9 of Menon et al. (2021)."""

from __future__ import annotations

import pytest
import torch

from lt_pipeline.learning.engine.predict import accuracies
from lt_pipeline.learning.methods.post_hoc import PostHocAdjustment, PostHocOptions
from lt_pipeline.learning.models.network import ModelConfig
from lt_pipeline.learning.schema import UserError
from toys import toy_card, toy_images

CPU = torch.device("cpu")


def built(**options):
    torch.manual_seed(0)
    return PostHocAdjustment(PostHocOptions(**options), ModelConfig(), toy_card()).eval()


@pytest.mark.parametrize("tau", [0.0, 1.0, 1.7])
def test_logits_fall_by_tau_log_priors(tau):
    method, data = built(tau=tau), toy_images()
    with torch.no_grad():
        before = method.score(data.images)
        method.post_process(data, data, CPU)
        after = method.score(data.images)
    counts = torch.tensor(method.card.longtail.class_counts).double()
    expected = before - (tau * (counts / counts.sum()).log()).float()
    torch.testing.assert_close(after, expected)


def test_tau_is_the_one_of_the_best_mean_recall_on_the_hold_out():
    method, data, hold_out = built(tau=None), toy_images(), toy_images(seed=1)
    report = method.post_process(data, hold_out, CPU)
    recalls = {float(tau): recall for tau, recall in report["validation_mean_recall"].items()}
    assert set(recalls) == set(method.options.candidates)
    assert recalls[report["tau"]] == max(recalls.values())
    reached = accuracies(method, method.score, hold_out, device=CPU)["mean_recall"]
    assert reached == recalls[report["tau"]]


def test_without_a_hold_out_tau_must_be_told():
    assert PostHocOptions(tau=None).wants_validation
    nothing = toy_images()[torch.zeros(0, dtype=torch.long)]
    with pytest.raises(UserError, match=r"data\.validation > 0"):
        built(tau=None).post_process(toy_images(), nothing, CPU)


def test_it_stands_on_logistic_regression():
    options = PostHocOptions(pretrain="logistic_regression")
    assert options.built_on == ("logistic_regression",)
    assert [stage.trains for stage in PostHocAdjustment.stages(options)] == [False]
