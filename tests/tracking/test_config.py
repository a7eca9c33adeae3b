from __future__ import annotations

import pytest
import yaml

from lt_pipeline.learning.experiments.config import check_parameters
from lt_pipeline.learning.schema import UserError
from lt_pipeline.tracking.config import TrackingConfig, in_effect
from toys import PROJECT


def written(env):
    return yaml.safe_load((PROJECT / "conf" / env / "parameters.yml").read_text())


def test_models_are_registered_but_of_smoke_runs():
    assert TrackingConfig.read(written("base")["tracking"]) == TrackingConfig()
    smoke = TrackingConfig(register=False, system_metrics=False)
    assert TrackingConfig.read(written("smoke")["tracking"]) == smoke
    assert TrackingConfig() == TrackingConfig(register=True, system_metrics=True)


@pytest.mark.parametrize("given", [True, False])
def test_an_experiment_in_a_copy_of_the_project_registers_nothing(tmp_path, given):
    parameters = {"seed": 3, "tracking": {"register": given, "system_metrics": True}}
    assert in_effect(parameters, tmp_path) == parameters
    copy = tmp_path / ".dvc" / "tmp" / "exps" / "tmpab12"
    without = {"register": False, "system_metrics": True}
    assert in_effect(parameters, copy) == {"seed": 3, "tracking": without}
    assert in_effect({}, tmp_path) == {"tracking": {"register": True, "system_metrics": True}}


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"register": "yes"}, "tracking.register: must be true or false, but got 'yes'"),
        ({"registr": True}, "tracking: unknown parameter 'registr': did you mean 'register'?"),
        (None, "tracking: must be a block of parameters, but got null"),
    ],
)
def test_a_wrong_value_is_refused_in_a_line(tmp_path, block, said):
    with pytest.raises(UserError) as refused:
        in_effect({"tracking": block}, tmp_path)
    assert str(refused.value).startswith(said)


def test_the_block_is_a_parameter_of_every_run():
    check_parameters({"tracking": {"register": False}})
