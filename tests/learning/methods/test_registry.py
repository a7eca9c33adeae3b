from __future__ import annotations

import pickle

import pytest

from lt_pipeline.learning import methods


def test_the_files_are_the_methods():
    names = {"ce", "cb", "logit_adjustment", "balanced_softmax", "more"}
    assert names <= set(methods.available())


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(ValueError, match="unknown method 'mor': did you mean 'more'"):
        methods.get("mor")


@pytest.mark.parametrize("name", methods.available())
def test_what_a_method_can_be_told_goes_to_other_processes(name):
    options = methods.get(name).Options()
    assert pickle.loads(pickle.dumps(options)) == options
