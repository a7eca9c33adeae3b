"""Commands that are printed start the same run again."""

from __future__ import annotations

import shlex
import subprocess

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lt_pipeline.cli import run
from lt_pipeline.hooks.sweep import command
from lt_pipeline.learning.schema import UserError
from lt_pipeline.reports import command_line
from lt_pipeline.reports.command_line import kedro_run, to_params_option

AWKWARD = [
    *("null", "None", "true", "1e5", "1:30", "2020-01-01", "yes", "", " ", " a ", "a b", "a, b"),
    *("=x", "x=y,z=1", "${seed}", "???", "- x", "{", "[1", "#c", "x #y", "'", '"', "\\,", ",,"),
    *("a\nb", "a: b", "\u2028", "\x85", "\x00", "\U0001f600", "&a", "*a", "!!int 1", "%"),
]
NAMES = st.from_regex(r"[\w-]{1,4}", fullmatch=True)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(AWKWARD)
)


def values(names):
    def inside(leaves):
        return st.lists(leaves, max_size=3) | st.dictionaries(names, leaves, max_size=3)

    return st.recursive(SCALARS, inside, max_leaves=8)


def ordered(words):
    """Return parameters with types that are told apart and names in one order."""
    if isinstance(words, dict):
        return sorted((repr(name), ordered(value)) for name, value in words.items())
    return [ordered(value) for value in words] if isinstance(words, list) else repr(words)


def read(text):
    """What ``kedro run`` makes of ``--params``."""
    (option,) = (option for option in run.params if option.name == "params")
    return option.callback(None, option, text)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(NAMES, values(NAMES | st.sampled_from(AWKWARD) | st.integers()), max_size=3))
@example({"training": {"milestones": [1, 2], "gamma": None, "name": "a b"}})
@example({"a": {0: 1, "b": [[1, 2], {"c": "d, e"}]}, "e": {}})
def test_kedro_reads_back_what_was_told(parameters):
    text, left_out = to_params_option(parameters)
    assert left_out == []
    assert ordered(read(text)) == ordered(parameters)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("a=1,b=2", ["a=1", "b=2"]),
        ("a=[x,y], b={k: [1,2],l: 3},c=z", ["a=[x,y]", "b={k: [1,2],l: 3}", "c=z"]),
        ("a='x,y',b=\"u,\\\"v,w\",c=''", ["a='x,y'", 'b="u,\\"v,w"', "c=''"]),
        ("a='it''s, x',b=don't,c=1", ["a='it''s, x'", "b=don't", "c=1"]),
        ("a=['x]',\"[y\"],b=1", ["a=['x]',\"[y\"]", "b=1"]),
    ],
)
def test_items_end_at_commas_outside_of_brackets_and_quotation_marks(text, items):
    assert command_line.split(text) == items


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a=[1,b=2", r"a=\[1,b=2: a bracket is not closed"),
        ("a=1],b=2", r"a=1\]: \] closes what is not open"),
        ("a='x,b=2", "a='x,b=2: ' is not closed"),
    ],
)
def test_what_is_not_closed_is_said(text, said):
    with pytest.raises(UserError, match=said):
        command_line.split(text)


def test_lists_are_read_and_written_as_they_look():
    assert read("evaluation.detectors=[knn,msp],seeds=[0,1]") == {
        "evaluation": {"detectors": ["knn", "msp"]},
        "seeds": [0, 1],
    }
    assert to_params_option({"a": [1, 2], "b": ["x", "y z"]})[0] == "a=[1, 2],b=[x, y z]"


def test_plain_values_are_written_plainly():
    given = {"a": {"b": 1e-05, "c": True, "d": "x"}, "e": [], "f": (1,), "g": np.float64(0.5)}
    wanted = "a.b=1e-05,a.c=True,a.d=x,e=[],f=[1],g=0.5"
    assert to_params_option(given) == (wanted, [])
    assert to_params_option({"a": None, "b": "null"})[0] == "a=null,b='null'"


@pytest.mark.parametrize("name", ["a.b", "a[0]", "a=b", "a,b", " a", "", 1, None])
def test_a_name_that_no_parameter_of_a_command_can_have_is_named(name):
    assert to_params_option({name: 1, "seed": 2}) == ("seed=2", [str(name)])


def test_what_cannot_be_told_is_said_behind_a_command_that_still_runs():
    line = kedro_run({"runtime_params": {"a": {"b": object(), "c": 1}, "x.y": 2}})
    assert line == "kedro run --params=a.c=1  # cannot be told: a.b, x.y"
    assert shlex.split(line, comments=True) == ["kedro", "run", "--params=a.c=1"]


def test_a_shell_hands_every_word_on_as_it_is():
    given = {
        "pipeline_names": ["ce", "a b"],
        "env": "my env",
        "runtime_params": {"a": ["$HOME", "'; ls"], "b": "x, `y`"},
        "only_missing_outputs": True,
    }
    script = f'kedro() {{ printf "%s\\0" "$@"; }}; {kedro_run(given)}'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    first, pipelines, env, params, last, _ = done.stdout.split("\0")
    assert (first, pipelines, env) == ("run", "--pipelines=ce,a b", "--env=my env")
    assert read(params.removeprefix("--params=")) == given["runtime_params"]
    assert last == "--only-missing-outputs"


def test_no_command_has_a_password():
    url = "postgresql://me:se@cret@host/name"
    assert kedro_run({"runtime_params": {"tune": {"storage": url}, "seed": 1}}) == (
        "kedro run '--params=tune.storage=postgresql://me:***@host/name,seed=1'"
    )


def test_the_best_trial_is_repeated_with_everything_that_was_given():
    best = {
        "method": "ce",
        "validation": 0.2,
        "params": {"options.name": "a, b", "training.gamma": None, "training.rate": 0.1},
    }
    given = {
        "method": "ce",
        "tune": {"trials": 3},
        "together": 4,
        "ce_search": {"training": {"rate": {"low": 0.1}}},
        "ce": {"training": {"rate": 0.5, "epochs": 3}},
        "data": {"imbalance_ratio": 10},
        "training": {"milestones": [1, 2]},
    }
    words = shlex.split(command(best, {"env": "smoke", "runtime_params": given}))
    assert words[:-1] == ["kedro", "run", "--pipelines=ce", "--env=smoke"]
    assert read(words[-1].removeprefix("--params=")) == {
        "ce": {"training": {"rate": 0.1, "epochs": 3, "gamma": None}, "options": {"name": "a, b"}},
        "data": {"imbalance_ratio": 10, "validation": 0.2},
        "training": {"milestones": [1, 2]},
    }


def test_every_narrowing_option_is_one_of_kedros():
    from kedro.framework.cli.project import run

    known = {name for option in run.params for name in (*option.opts, *option.secondary_opts)}
    assert {*command_line.NARROWED.values(), "--params", "--only-missing-outputs"} <= known
