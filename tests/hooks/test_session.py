"""What a session was asked for: tags and nodes that there are, parameters that are read."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from kedro.pipeline import Node

from confs import parameters
from lt_pipeline.hooks import session
from lt_pipeline.hooks.parameters import say_without_effect
from lt_pipeline.learning.schema import UserError


def same(value):
    return value


NODES = [
    Node(same, inputs="a", outputs="b", name="train", namespace="ce", tags="training"),
    Node(same, inputs="b", outputs="c", name="ood", namespace="ce", tags="evaluation"),
]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"tags": ["evaluatio"]}, "unknown tag 'evaluatio': did you mean 'evaluation'"),
        ({"node_names": ["ce.trai"]}, "unknown node 'ce.trai': did you mean 'ce.train'"),
        ({"from_nodes": ["oo"]}, "unknown node 'oo'"),
        ({"to_nodes": ["ce.train", "x"]}, "unknown node 'x'"),
    ],
)
def test_what_narrows_a_run_down_is_there(asked, said, monkeypatch):
    monkeypatch.setattr(session, "_asked", lambda: asked)
    with pytest.raises(UserError, match=said):
        session.check_narrowed(NODES)


@pytest.mark.parametrize("asked", [{}, {"tags": ["training"], "from_nodes": ["ce.ood"]}])
def test_tags_and_nodes_that_there_are_are_taken(asked, monkeypatch):
    monkeypatch.setattr(session, "_asked", lambda: asked)
    session.check_narrowed(NODES)


@pytest.mark.parametrize(
    ("names", "given", "said"),
    [
        (
            ["ce"],
            {"dbm": {"options": {"variant": "bs"}}},
            ["dbm.* has no effect: ce does not read it"],
        ),
        (
            ["ce"],
            {"tune": {"trials": 3}, "ce": {"options": {}}, "seed": 1},
            ["tune.* has no effect"],
        ),
        (["btm"], {"mixup": {"training": {}}}, []),
        (["dbm_K"], {"dbm": {"options": {}}}, []),
        (["compare"], {"compare": {"sort_by": "few"}}, []),
        (["ce"], {"together": 3}, ["together has no effect"]),
        (["dbm_K"], {"together": 3}, []),
        (["tune"], {"together": 3}, []),
        (["ce"], {}, []),
    ],
)
def test_parameters_that_nothing_reads_are_said(names, given, said, caplog):
    loader = SimpleNamespace(runtime_params=given)
    with caplog.at_level(logging.WARNING):
        say_without_effect(loader, names, parameters())
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(said)
    assert all(line.startswith(words) for line, words in zip(lines, said, strict=True))


def test_several_seeds_can_be_together(caplog):
    given = {"seeds": [0, 1], "together": 2}
    with caplog.at_level(logging.WARNING):
        say_without_effect(SimpleNamespace(runtime_params=given), ["ce"], parameters() | given)
    assert not caplog.records


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"training": {"epochs": 3}}, ["training.epochs has no effect: ce.training.epochs is 10"]),
        ({"training": {"epochs": 10, "batch_size": 3}}, []),
        ({"training": {"epochs": 3}, "ce": {"training": {"epochs": 10}}}, []),
    ],
)
def test_what_a_methods_own_block_overrules_is_said(given, said, caplog):
    conf = parameters()
    conf["ce"] = {**conf["ce"], "training": {"epochs": 10}}
    with caplog.at_level(logging.WARNING):
        say_without_effect(SimpleNamespace(runtime_params=given), ["ce"], conf)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(",")[0] for line in lines] == said
