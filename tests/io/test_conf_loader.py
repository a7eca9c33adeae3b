from __future__ import annotations

import shutil

import click
import pytest
from kedro.config import OmegaConfigLoader

from lt_pipeline.io.conf_loader import ConfLoader
from lt_pipeline.learning.schema import UserError
from lt_pipeline.learning.transforms.augment import AugmentConfig
from lt_pipeline.settings import CONFIG_LOADER_ARGS, CONFIG_LOADER_CLASS
from toys import PROJECT


@pytest.fixture
def conf(tmp_path):
    # studies and their figures take as long to read as all else
    ignored = shutil.ignore_patterns("parameters_studies.yml", "papers.yml", "local")
    shutil.copytree(PROJECT / "conf", tmp_path / "conf", ignore=ignored)
    (tmp_path / "conf/local").mkdir()
    return tmp_path / "conf"


def load(conf, **given):
    return ConfLoader(
        conf_source=str(conf), env="smoke", runtime_params=given, **CONFIG_LOADER_ARGS
    )["parameters"]


def test_it_is_the_projects_loader():
    assert CONFIG_LOADER_CLASS is ConfLoader


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("smoke/parameters.yml", "data: {imbalance_ratio: 1:50}\n", "data.imbalance_ratio: YAML"),
        ("smoke/parameters.yml", "seed: 1\nseed: 2\n", "line 2: seed is there twice"),
        ("smoke/parameters.yml", "seed: 1\ndata:\n\tseed: 1\n", "line 3: is no YAML"),
        ("smoke/globals.yml", "run: {a\nb: 1", "line 2: is no YAML"),
        ("smoke/parameters.yml", "- 1\n", "must be a block of parameters"),
        ("base/parameters_more.yml", "more: {options: \x00}", "is no YAML"),
        ("base/mlflow.yml", "server: [1", "is no YAML"),
        ("base/catalog.yml", "a: {", "is no YAML"),
        ("smoke/parameters/more.yml", "- 1\n", "must be a block of parameters"),
        ("smoke/parameters_more.json", '{"seed": 010}', "seed: YAML reads 010 as 8"),
    ],
)
def test_a_broken_file_is_one_line_with_its_name(conf, file, text, message):
    (conf / file).parent.mkdir(exist_ok=True)
    (conf / file).write_text(text)
    with pytest.raises(click.ClickException, match=message) as error:
        load(conf)
    assert str(error.value).startswith(f"conf/{file}")
    assert "\n" not in str(error.value)


def test_other_letters_than_utf8_are_one_line(conf):
    (conf / "smoke/parameters.yml").write_bytes(b"# \xff\nseed: 1\n")
    with pytest.raises(click.ClickException, match=r"conf/smoke/parameters.yml: is no UTF-8"):
        load(conf)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"training": [1, 2]}, r"^training: must be a block of parameters, but got \[1, 2\]$"),
        ({"training": {"augment": [1]}}, "^training.augment: must be a block of parameters"),
        ({"evaluation": {"detectors": {"a": 1}}}, "^evaluation.detectors: must be a list, but got"),
        ({"training": {"epochs": "${nope}"}}, "^training.epochs: .*'nope' not found$"),
    ],
)
def test_what_does_not_fit_conf_is_one_line_with_the_parameter(conf, given, message):
    with pytest.raises(ValueError, match=message):
        load(conf, **given)


@pytest.mark.parametrize("file", ["parameters.yml", "parameters_mine.yml"])
def test_an_environments_block_that_is_a_list_is_refused(conf, file):
    (conf / "smoke" / file).write_text("training: [1]\n")
    with pytest.raises(ValueError, match=r"^training: must be a block of .* got \[1\]$"):
        load(conf)


def test_what_only_kedros_reader_trips_over_is_one_line_with_the_file(conf):
    (conf / "smoke/parameters_mine.yml").write_text("mine:\t1\n")
    with pytest.raises(ValueError, match=r"^Invalid YAML .*parameters_mine.yml.* line 0") as error:
        load(conf)
    assert "\n" not in str(error.value)


def environment(conf, text: str, own: str = ""):
    """The parameters of an environment with this globals.yml."""
    (conf / "mine").mkdir()
    (conf / "mine/globals.yml").write_text(f"run: mine\n{text}")
    if own:
        (conf / "mine/parameters.yml").write_text(own)
    return ConfLoader(str(conf), "mine", **CONFIG_LOADER_ARGS)


def test_recipes_lie_over_conf_base_the_later_over_the_earlier_and_all_below_its_own(conf):
    loader = environment(
        conf,
        "uses: [cifar, darl, quick]\nrecipes: {quick: {training: {batch_size: 8, epochs: 3}}}\n",
        "training: {epochs: 4}\n",
    )
    params = loader["parameters"]
    training = params["training"]
    assert (training["epochs"], training["batch_size"], training["nesterov"]) == (4, 8, True)
    # of the first, of the second and of conf/base
    assert params["model"] == {**params["model"], "backbone": "resnet32", "head": "linear"}
    assert training["augment"] == {
        **AugmentConfig().model_dump(mode="json"),
        **{"crop_padding": 4, "flip": 0.5, "autoaugment": True, "cutout": 16},
    }
    assert loader.as_written() == params


def test_an_environment_without_recipes_has_none(conf):
    loader = environment(conf, "")
    assert loader.recipes() == {}
    base = ConfLoader(str(conf), "base", **CONFIG_LOADER_ARGS)
    assert loader["parameters"] == base["parameters"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("uses: [cifar, drl]", "^mine/globals.yml: uses: unknown recipe 'drl': did you mean 'darl"),
        ("uses: darl", "^mine/globals.yml: uses: must be a list of recipes, but got 'darl'$"),
    ],
)
def test_a_recipe_that_there_is_not_is_one_line(conf, text, message):
    loader = environment(conf, text)
    with pytest.raises(UserError, match=message):
        loader["parameters"]


def test_what_does_not_fit_a_recipe_is_one_line_with_the_parameter(conf):
    text = "uses: [mine]\nrecipes: {mine: {training: {augment: [1]}}}"
    with pytest.raises(UserError, match=r"^training.augment: must be a block .* got \[1\]$"):
        environment(conf, text)["parameters"]


def read(monkeypatch):
    """The names of the files of parameters that are read from now on."""
    names, once = [], OmegaConfigLoader._read_dir_configs

    def counted(loader, path, patterns, key, *rest):
        files = once(loader, path, patterns, key, *rest)
        names.extend(file.name for file in files if key == "parameters")
        return files

    monkeypatch.setattr(OmegaConfigLoader, "_read_dir_configs", counted)
    return names


def test_parameters_are_read_once_also_where_the_command_line_changes_them(conf, monkeypatch):
    names = read(monkeypatch)
    given = {"seed": 3, "training": {"epochs": 7}}
    loader = ConfLoader(str(conf), "local", runtime_params=given, **CONFIG_LOADER_ARGS)
    changed, written = loader["parameters"], loader.as_written()
    assert len(names) == len({*names}) > 30
    assert (changed["seed"], changed["training"]["epochs"]) == (3, 7)
    assert (written["seed"], written["training"]["epochs"]) != (3, 7)
    assert loader["parameters"] == changed


def test_without_any_on_the_command_line_as_written_is_what_is_run(conf):
    loader = ConfLoader(str(conf), "local", **CONFIG_LOADER_ARGS)
    assert loader["parameters"] == loader.as_written() == loader["parameters"]


@pytest.mark.parametrize("env", ["smoke", "miml", "cifar100_lt", "local"])
def test_only_what_an_environment_changes_is_merged_and_it_is_what_kedro_makes_of_all(
    conf, env, monkeypatch
):
    merged, once = [], OmegaConfigLoader._merge_configs

    def merging(loader, config, env_config, *rest):
        merged.append({*config} - {*env_config})
        return once(loader, config, env_config, *rest)

    def read():
        loader = ConfLoader(str(conf), env, **CONFIG_LOADER_ARGS)
        keys = ("parameters", "globals", "mlflow", "catalog")
        return [(key, name, value) for key in keys for name, value in loader[key].items()]

    monkeypatch.setattr(OmegaConfigLoader, "_merge_configs", merging)
    ours = read()
    assert merged
    assert not any(merged)
    monkeypatch.delattr(ConfLoader, "_merge_configs")
    assert ours == read()
    assert any(merged)
