"""Bad values through the real command line: one line, before anything runs."""

from __future__ import annotations

import pytest

OTHERS = [
    ("ce", "training=null", "training: must be a block of parameters, but got null"),
    ("ce", "training.learning_rate=.inf", "training.learning_rate: Input should be a finite"),
    ("ce", "training.epochs={", "training.epochs={: a bracket is not closed"),
    ("dbm", "K=0.1", "did you mean 'dbm.options.criterion.margin.K'?"),
    ("ce", "method=null", "method: unknown method null: valid: arcface"),
    ("ce", "evaluation.ood=svhn", "evaluation.ood: svhn is not there: no test_32x32.mat; put"),
    ("dbm_K", "training.batch_size=999", "training.batch_size must be <= the number"),
    ("ce", "device=meta", "device 'meta' cannot be used here"),
    ("ce", "training.step=captured,device=cpu", "training.step=captured is a CUDA graph, but the"),
]


@pytest.mark.parametrize(
    ("pipeline", "given", "line"),
    [
        ("ce", "data.imbalance_ratio=1:50", "data.imbalance_ratio: YAML reads 1:50 as 110"),
        *(pytest.param(*other, marks=pytest.mark.slow) for other in OTHERS),
    ],
)
def test_a_bad_value_is_one_line_before_anything_runs(untouched, pipeline, given, line):
    code, output = untouched.run(
        "kedro", "run", f"--pipelines={pipeline}", "--env=smoke", f"--params={given}"
    )
    assert code == 1
    last = output.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert line in last
    assert "Traceback" not in output
    assert not untouched.file("03_primary").exists()
