"""Logistic regression against scikit-learn's own answers, whatever the features are scaled to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.engine.predict import predict
from lt_pipeline.learning.methods.logistic_regression import LogisticRegression as Ours
from lt_pipeline.learning.methods.logistic_regression import LogisticRegressionOptions
from lt_pipeline.learning.models.network import ModelConfig
from lt_pipeline.learning.schema import UserError
from toys import toy_card, toy_images

CPU = torch.device("cpu")


def fitted(data, counts=None, **options):
    torch.manual_seed(0)
    card = toy_card(counts) if counts else toy_card()
    method = Ours(LogisticRegressionOptions(**options), ModelConfig(), card)
    method.fit([], data, CPU)
    return method


def theirs(method, data, standardize=True, **options):
    features = predict(method, method.net.features, data, device=CPU).double().numpy()
    scaler = StandardScaler() if standardize else StandardScaler(with_mean=False, with_std=False)
    scaled = scaler.fit_transform(features)
    solver = LogisticRegression(max_iter=1000, **options).fit(scaled, data.labels.numpy())
    return solver, scaler


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("class_weight", ["none", "balanced"])
def test_its_probabilities_are_scikit_learns(standardize, class_weight):
    data, test = toy_images(), toy_images(seed=1)
    method = fitted(data, class_weight=class_weight, standardize=standardize, inverse_penalty=0.5)
    weight = None if class_weight == "none" else class_weight
    solver, scaler = theirs(method, data, standardize, class_weight=weight, C=0.5)
    seen = predict(method, method.net.features, test, device=CPU).double().numpy()
    expected = solver.predict_proba(scaler.transform(seen))
    probabilities = predict(method, method.score, test, device=CPU).softmax(1).numpy()
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)


def test_two_classes_are_the_softmax_of_what_scikit_learn_has_one_logit_for():
    data = toy_images((20, 12))
    method = fitted(data, (20, 12))
    solver, scaler = theirs(method, data)
    seen = predict(method, method.net.features, data, device=CPU).double().numpy()
    expected = solver.predict_proba(scaler.transform(seen))
    probabilities = predict(method, method.score, data, device=CPU).softmax(1).numpy()
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)


def test_a_class_without_images_is_never_the_answer():
    data = toy_images()
    without = data[data.labels != 1]
    method = fitted(without)
    assert 1 not in predict(method, method.score, data, device=CPU).argmax(1).tolist()


def test_a_feature_that_never_changes_does_no_harm():
    flat = ImageSet(
        torch.zeros(8, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1] * 4), ("a", "b")
    )
    method = fitted(flat, (4, 4))
    assert method.net.head.weight.isfinite().all()


def test_a_cosine_head_is_refused():
    with pytest.raises(UserError, match=r"model\.head = linear"):
        LogisticRegressionOptions().check_head(cosine=True)
