"""docs/library.md: its examples run as they stand, and importing them is quick."""

from __future__ import annotations

import doctest
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from safetensors.torch import save_file

from lt_pipeline import learning
from lt_pipeline.learning import DataCard, DataConfig, Experiment, ExperimentConfig, load_finished
from lt_pipeline.learning.data.prepare import expected
from toys import PROJECT

PAGE = (PROJECT / "docs" / "library.md").read_text()
FOUND = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE)
SECTIONS = {name: text for name, text in FOUND if "```python" in text}
RUN, DATA = Path("data/06_models/smoke/ce"), Path("data/03_primary/smoke")
PLUMBING = {"kedro", "mlflow", "dvc", "optuna", "ray"}
# all below what is drawn: methods and what they stand on
BASE = """
from importlib import import_module
from pkgutil import iter_modules
for room in ("data", "engine", "losses", "methods", "models", "transforms"):
    package = import_module(f"lt_pipeline.learning.{room}")
    for module in iter_modules(package.__path__):
        if not module.name.endswith(("kernel", "_triton")):  # Triton is not everywhere
            import_module(f"{package.__name__}.{module.name}")
"""
LARGE = PLUMBING | {"torch", "matplotlib", "pandas", "pydantic"}


def example(name):
    """Return the example of a section, to be run by itself."""
    (code,) = re.findall(r"```python\n(.*?)```", SECTIONS[name], flags=re.DOTALL)
    return doctest.DocTestParser().get_doctest(code, {}, name, "docs/library.md", None)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The method of a finished run, whose files are where a run's are."""
    monkeypatch.chdir(tmp_path)
    config = ExperimentConfig.resolve("ce", {"model": {"backbone": "resnet8"}})
    card = expected(DataConfig(imbalance_ratio=10, max_per_class=60))
    method = Experiment(config, card).build()
    method.merge_for_inference()
    for folder in (RUN, DATA):
        folder.mkdir(parents=True)
    (RUN / "config.json").write_text(config.model_dump_json())
    (DATA / "data_card.json").write_bytes(TypeAdapter(DataCard).dump_json(card))
    save_file(method.state_dict(), RUN / "model.safetensors")
    return method


@pytest.mark.parametrize("name", SECTIONS)
def test_an_example_runs_and_prints_what_the_page_says(name, run, capsys):
    result = doctest.DocTestRunner().run(example(name))
    assert result.attempted > 4
    assert not result.failed, capsys.readouterr().out


@pytest.mark.parametrize("name", SECTIONS)
def test_an_example_has_ten_lines_without_its_imports(name):
    sources = [e.source for e in example(name).examples if "import " not in e.source]
    assert sum(source.count("\n") for source in sources) <= 10


def test_every_name_that_is_offered_is_there_and_the_page_uses_no_other_module():
    for name in learning.__all__:
        home = import_module(f"lt_pipeline.learning.{learning._MODULES[name]}")
        assert getattr(learning, name) is getattr(home, name)
    assert set(learning.__all__) <= set(dir(learning))
    assert set(re.findall(r"from (lt_pipeline[\w.]*) import", PAGE)) == {"lt_pipeline.learning"}
    with pytest.raises(AttributeError, match="has no attribute 'Longtail'"):
        _ = learning.Longtail


def test_no_name_hides_a_module():
    modules = {path.stem for path in Path(learning.__path__[0]).iterdir()}
    assert not modules & {*learning.__all__}


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import lt_pipeline", LARGE),
        ("import lt_pipeline.learning", LARGE),
        ("from lt_pipeline.learning import LongTail, class_balanced", PLUMBING | {"matplotlib"}),
        pytest.param("from lt_pipeline.learning import *", PLUMBING, marks=pytest.mark.slow),
        (BASE, PLUMBING | {"matplotlib"}),
    ],
)
def test_an_import_brings_no_more_than_it_needs(code, absent):
    code = f"{code}\nimport json, sys\nprint(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not absent & {*json.loads(done.stdout)}


def test_a_run_is_loaded_with_its_weights_and_a_file_that_is_missing_is_named(run):
    assert load_finished(RUN, DATA).net.prototypes.equal(run.net.prototypes)
    (RUN / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no .*ce/model\.safetensors: "):
        load_finished(RUN, DATA)
