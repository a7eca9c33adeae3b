"""conf/ against the code: every parameter is in conf/base, and has the value of the code there."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml

from confs import parameters
from lt_pipeline.io.conf_loader import ConfLoader
from lt_pipeline.learning import methods
from lt_pipeline.learning.data.prepare import DataConfig
from lt_pipeline.learning.experiments.config import ExperimentConfig, data_config, updated
from lt_pipeline.learning.schema import CHOICES, CHOOSING, Config, UserError, flatten
from lt_pipeline.learning.studies.comparison import CompareConfig
from lt_pipeline.learning.studies.config import AtOnceConfig
from lt_pipeline.pipelines.audit.nodes import FINE_TUNING, RECIPE
from lt_pipeline.serving.config import ServeConfig
from lt_pipeline.settings import CONFIG_LOADER_ARGS
from lt_pipeline.tracking.config import TrackingConfig
from lt_pipeline.tracking.models import EvaluateConfig
from lt_pipeline.tuning.config import TuneConfig
from toys import PROJECT, toy_card

PLAIN = ExperimentConfig(method="ce")
SHARED: dict[str, Config] = {
    "data": DataConfig(),
    "model": PLAIN.model,
    "training": PLAIN.training,
    "evaluation": PLAIN.evaluation,
    "compare": CompareConfig(),
    "evaluate": EvaluateConfig(),
    "tracking": TrackingConfig(),
    "serve": ServeConfig(),
    "tune": TuneConfig(),
}
# the block of the method that is trained first says it
ELSEWHERE = ("pretrain_options",)
METHODS = methods.available()


@pytest.fixture(scope="module")
def base():
    return parameters("base")


def leaves(config: Config, path: str = ""):
    """Yield the path of every parameter that a block is told, whatever it chooses.

    Another criterion, say, would have no use for what this one can be told.
    """
    for name in type(config).model_fields:
        inner = getattr(config, name)
        if name in CHOICES and isinstance(inner, Config):
            yield from (f"{path}{name}.{key}" for key in CHOOSING if hasattr(inner, key))
        elif isinstance(inner, Config):
            yield from leaves(inner, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def said(block) -> set[str]:
    return {path for path, _ in flatten(block, ".")}


@pytest.mark.parametrize("name", SHARED)
def test_conf_shows_every_shared_parameter(base, name):
    assert {*leaves(SHARED[name])} - {"search"} <= said(base[name])


@pytest.mark.parametrize("name", SHARED)
def test_shared_parameters_are_the_codes(base, name):
    default = SHARED[name].model_dump()
    defaults = type(SHARED[name]).model_validate(base[name]).model_dump()
    if name == "tune":  # what is searched is no value
        del default["search"], defaults["search"]
    assert defaults == default


def test_what_is_no_block_is_the_codes(base):
    assert {name for name, value in base.items() if not isinstance(value, dict)} == {
        *("seed", "seeds", "together", "device", "method")
    }
    assert (base["seed"], base["device"], base["seeds"]) == (PLAIN.seed, PLAIN.device, None)
    assert base["together"] == AtOnceConfig().together


@pytest.mark.parametrize("method", METHODS)
def test_conf_shows_every_option_of_a_method(base, method):
    wanted = {
        path
        for path in leaves(methods.get(method).Options())
        if not path.startswith((*ELSEWHERE, "criterion"))
    }
    options = said(base[method]["options"])
    assert wanted <= options
    assert [path for path in options if path.startswith("criterion.")]


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_parameters_are_the_codes(base, method):
    """But for the head that it is given: what is trained without conf/ is what conf/ says."""
    assert base[method].keys() <= {"options", "model"}
    without = ExperimentConfig.resolve(method, {"model": base[method].get("model", {})})
    assert ExperimentConfig.resolve(method, base) == without
    assert data_config({}) == data_config(base)


def test_every_recipe_is_of_an_environment_that_there_is_or_that_an_audit_speaks_of():
    files = [yaml.safe_load(path.read_text()) for path in PROJECT.glob("conf/*/globals.yml")]
    used = {RECIPE, FINE_TUNING, *(name for file in files for name in file.get("uses", []))}
    (recipes,) = [file["recipes"] for file in files if "recipes" in file]
    assert recipes.keys() == used


@cache
def using(*recipes):
    """Return the parameters of an environment that lies over the recipes."""
    # studies and their figures take as long to read as all else
    ignored = shutil.ignore_patterns("parameters_studies.yml", "papers.yml")
    with TemporaryDirectory() as name:
        conf = Path(name) / "conf"
        shutil.copytree(PROJECT / "conf/base", conf / "base", ignore=ignored)
        (conf / "mine").mkdir()
        text = yaml.safe_dump({"run": "mine", "uses": [*recipes]})
        (conf / "mine/globals.yml").write_text(text)
        return ConfLoader(str(conf), "mine", **CONFIG_LOADER_ARGS)["parameters"]


@pytest.mark.parametrize("recipes", [[FINE_TUNING], [RECIPE, FINE_TUNING]])
def test_fine_tuning_is_a_recipe_that_every_method_takes(recipes):
    params = using(*recipes)
    for method in METHODS:
        training = ExperimentConfig.resolve(method, params).training
        optimizer = "sgd" if method == "lift" else "adamw"  # its paper's, of adapters
        assert (training.optimizer.name, training.freeze_batchnorm) == (optimizer, True)
        assert (training.features, training.augment.resizes) == ("none", True)


def test_what_an_audit_writes_can_run_all_but_experts_with_parts_of_their_own():
    network = {"backbone": "resnet18", "weights": "default"}
    params = updated(using(RECIPE), {"model": network})
    card, refused, tuned = toy_card((100, 50, 30, 20), channels=3), {}, {}
    for method in METHODS:
        experiment = ExperimentConfig.resolve(method, params)
        if experiment.training.features == "none":
            tuned[method] = experiment.training
        try:
            experiment._check_fit(card, (3, 32, 32))
        except UserError as error:
            refused[method] = str(error)
    assert refused.keys() == {"ride", "sade"}
    assert all("no part of their own: set the method's option" in said for said in refused.values())
    assert tuned.keys() == {"more", "dqroute", "lgla", "darl", "bcl", "lift"}
    recipe = using(FINE_TUNING)
    for method, training in tuned.items():
        assert training == ExperimentConfig.resolve(method, recipe).training
