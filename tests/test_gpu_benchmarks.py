"""benchmarks/gpu at toy length, on a machine that has none of the plumbing's packages."""

import os
import re
import subprocess
import sys
import time
import tomllib
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.data.prepare import DataConfig, make
from lt_pipeline.learning.data.sources import Source, load_source
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.schema import UserError
from lt_pipeline.learning.studies.config import StudyConfig

PROJECT = Path(__file__).parents[1]
# what is installed where PyTorch is, as on the machine that is lent (docs/gpu.md), and what is not
THERE = {
    *("click", "filelock", "matplotlib", "numpy", "pandas", "pillow", "psutil", "pyyaml"),
    *("requests", "rich", "safetensors", "scikit-learn", "scipy", "torch", "torchmetrics"),
    "torchvision",
}
ABSENT = {
    *("dvc", "kedro", "kedro-datasets", "kedro-mlflow", "mlflow", "omegaconf", "optuna"),
    "sqlalchemy",
}
BLOCK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"{{name}} is not on a bare machine", name=name)
sys.meta_path.insert(0, Absent())
"""
# all of the science is imported, and then every line is done; where no GPU forbids it, by forks of
# what is imported then
RUN = """
import importlib, multiprocessing, pkgutil, sys
import torch
import lt_pipeline.learning as science
from benchmarks.gpu import workers
from benchmarks.gpu.__main__ import main
if not torch.cuda.is_available():
    workers.SPAWN = multiprocessing.get_context("fork")
if __name__ == "__main__":
    for module in pkgutil.walk_packages(science.__path__, "lt_pipeline.learning."):
        if not module.name.endswith(("kernel", "_triton")):  # Triton is not everywhere
            importlib.import_module(module.name)
    for sys.argv[1:] in {lines}:
        main()
"""
DATA = DataConfig(imbalance_ratio=10, max_per_class=60)


@pytest.fixture(autouse=True)
def project_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(PROJECT)


@pytest.fixture
def bare(tmp_path):
    """Return what does command lines, one after the other, without the plumbing's packages."""
    (tmp_path / "site").mkdir()
    text = BLOCK.format(absent={name.replace("-", "_") for name in ABSENT})
    (tmp_path / "site/sitecustomize.py").write_text(text)
    path = os.pathsep.join([str(tmp_path / "site"), str(PROJECT / "src")])

    def run(*lines):
        env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-c", RUN.format(lines=lines)]
        done = subprocess.run(words, cwd=PROJECT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def entry(**arms):
    from benchmarks.gpu.packs import Entry

    block = StudyConfig.read(
        {"title": "t", "arms": {n: {"method": a.method} for n, a in arms.items()}}
    )
    data_hash = make(DATA, Path(), Path()).card.data_hash
    return Entry(study="s", env="e", block=block, data=DATA, data_hash=data_hash, arms=arms)


def arm(method, epochs=2, **options):
    training = TrainingConfig(epochs=epochs, batch_size=32, warmup_epochs=0, checkpoint_every=0)
    return ExperimentConfig(method=method, training=training, options=options)


def test_packed_sets_are_those_of_data_preparation(tmp_path):
    from benchmarks.gpu import tiles

    wanted = [
        DataConfig(imbalance_ratio=ratio, seed=seed, validation=share)
        for ratio, seed, share in ((20, 0, 0.0), (10, 0, 0.0), (10, 3, 0.2))
    ]
    made = [make(config, tmp_path, tmp_path) for config in wanted]
    needed = torch.cat([torch.cat([m.train_index, m.validation_index]) for m in made]).unique()
    source = load_source("digits", tmp_path)
    assert len(needed) < len(source.train)
    tiles.write(source, needed, tmp_path / "digits")
    for config, before in zip(wanted, made, strict=True):
        prepared = tiles.prepared(tmp_path, config.model_dump_json(), before.card.data_hash)
        assert prepared.card == before.card
        assert torch.equal(prepared.sets.train.images, before.train.images)
    other = DataConfig(imbalance_ratio=2)
    with pytest.raises(UserError, match="lacks images of digits, exponential, IR 2, seed 0"):
        tiles.prepared(
            tmp_path, other.model_dump_json(), make(other, tmp_path, tmp_path).card.data_hash
        )


def test_tiles_lose_nothing_of_colours(tmp_path):
    from benchmarks.gpu import tiles

    images = torch.randint(256, (70, 3, 5, 7), dtype=torch.uint8)
    full = ImageSet(images, torch.arange(70) % 2, ("a", "b"))
    tiles.write(Source(full, full[torch.arange(3)]), torch.arange(70), tmp_path / "x")
    train, test, *_ = tiles.read(tmp_path / "x")
    assert torch.equal(train.images, images)
    assert torch.equal(test.images, images[:3])
    assert train.class_names == ("a", "b")


@pytest.mark.slow
def test_an_environment_brings_the_studies_of_its_paper():
    from benchmarks.gpu import pack

    recipe, parameters = pack._loaded("cifar100_lt_btm", ["training.epochs=3"])
    asked = Namespace(studies=None, methods=["btm", "x:btm:btm.options.branches.sets=2"])
    *studies, named = pack._studies(recipe, parameters, asked)
    assert {name.partition("_")[0] for name, *_ in studies} == {"btm"}
    assert "table_btm_2" in studies[0][1].tables
    assert named[0] == "methods"
    assert named[2]["x"].options.branches.sets == 2
    assert named[2]["btm"].training.epochs == 3
    assert named[2]["btm"].training.monitor_test, "the best test epoch is printed, too"


def test_every_dependency_is_packed_or_there_or_not_needed():
    from benchmarks.gpu.packs import WHEELS

    text = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.match(r"[\w-]+", line)[0] for line in text}
    assert names - THERE - ABSENT <= {*WHEELS}


@pytest.fixture
def queue(tmp_path):
    from benchmarks.gpu.packs import jobs
    from benchmarks.gpu.schedule import Queue

    def build(entry, seconds, seeds=(0,)):
        return Queue(jobs([entry], seeds, "cpu"), Namespace(work=tmp_path), time.time() + seconds)

    return build


def test_no_run_is_begun_that_cannot_end_in_time(queue):
    from benchmarks.gpu.workers import Epoch, Finished

    waiting = queue(entry(short=arm("ce"), long=arm("ce", epochs=2000)), 60, (0, 1))
    assert queue(entry(short=arm("ce")), -1).next() is None
    first = waiting.next()
    assert first.label == "short"
    assert waiting.next().label == "long", "of which nothing is known yet"
    progress = waiting.running[first.key]
    waiting.epoch_over(first, Epoch("train", 1, {"train/seconds": 1.0}))
    progress.heard -= 2.0  # the next epoch comes two seconds later
    waiting.epoch_over(first, Epoch("train", 2, {"train/seconds": 1.0}))
    assert 2 * progress.pace * sum(progress.job.card.longtail.class_counts) == pytest.approx(4, 0.1)
    waiting.ended(first, Finished({"test/accuracy": 0.5}, {"wall_seconds": 10.0, "fresh": True}))
    assert waiting.next().label == "short", "10 of 60 seconds"
    assert waiting.next() is None, "10,000 of 60 seconds"
    assert waiting.left() == [
        "- stopped, and resumed by the same command: 2 runs",
        "- not begun, as the time was up: 1 runs",
    ]


def test_what_was_resumed_says_nothing_of_the_pace(queue):
    from benchmarks.gpu.workers import Epoch

    waiting = queue(entry(short=arm("ce")), 60)
    job = waiting.next()
    for number in range(1, 5):
        waiting.epoch_over(job, Epoch("train", number, {"train/seconds": 1.0}))
    assert waiting.running[job.key].pace == 0


def test_a_stage_that_arms_share_is_trained_by_one_of_them(queue, tmp_path):
    waiting = queue(entry(crt=arm("crt"), lws=arm("lws"), ce=arm("ce")), 60)
    one, other = waiting.next(), waiting.next()
    assert (one.label, other.label) == ("crt", "ce")
    assert waiting.next() is None
    waiting.first(one.key).parent.mkdir(parents=True)
    waiting.first(one.key).touch()
    assert waiting.next().label == "lws"


def test_as_many_runs_at_once_as_were_fastest(tmp_path):
    from benchmarks.gpu.table import best_of

    assert best_of(tmp_path) == (8, True)
    rows = [("step", 9e9), ("1 at once by MPS", 10), ("16 at once by MPS", 50)]
    table = pd.DataFrame([*rows, ("4 at once in turns", 60)], columns=["part", "value"])
    table[:3].to_csv(tmp_path / "throughput.csv")
    assert best_of(tmp_path) == (16, True)
    table.to_csv(tmp_path / "throughput.csv")
    assert best_of(tmp_path) == (4, False)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_with_its_whole_curve(tmp_path):
    from benchmarks.gpu import tiles
    from benchmarks.gpu.packs import jobs
    from benchmarks.gpu.table import Results
    from benchmarks.gpu.workers import Epoch, Place, Worker, do

    source = load_source("digits", tmp_path)
    tiles.write(source, torch.arange(len(source.train)), tmp_path / "pack/digits")
    (job,) = jobs([entry(ce=arm("ce", epochs=6))], [0], "cpu")
    place, results = Place(tmp_path / "pack", tmp_path / "work", "cpu", 1), Results(tmp_path)
    worker = Worker(place)
    worker.begin(job)
    said = Epoch("", 0, {})
    while said.number < 3:
        said = worker.conn.recv()
        results.curve(job, said)
    worker.stop()
    said = do(job, place, SimpleNamespace(send=lambda epoch: results.curve(job, epoch)))
    assert not said.facts["fresh"]
    assert not [*(tmp_path / "work").iterdir()]
    results.keep(job, said, {})
    assert pd.read_csv(tmp_path / "curves.csv")["epoch"].tolist() == [1, 2, 3, 4, 5, 6]
    # a later command goes on with what is there
    later, other = Results(tmp_path), job._replace(key="another")
    assert later.keys == {job.key}
    later.keep(other, said, {})
    assert Results(tmp_path).keys == {job.key, other.key}


@pytest.mark.slow
def test_the_prepared_command_runs_on_a_bare_machine(tmp_path, bare, monkeypatch):
    from benchmarks.gpu import __main__ as command

    words = ["pack", "smoke", "--ratios", "10", "--studies", "more_baselines", "--methods", "ce"]
    words += ["more", "--params", "studies.more_baselines.arms.BCL=null", "--python", "none"]
    monkeypatch.setattr(sys, "argv", ["gpu", *words, "--out", str(tmp_path / "pack")])
    command.main()
    given = ["--pack", str(tmp_path / "pack"), "--out", str(tmp_path / "out")]
    table = ["--study", "table_more_1", "--arms", "CE,LA", "--work", str(tmp_path / "work")]
    said = bare(
        ["table", *given, *table, "--seeds", "0,1", "--workers", "2"],
        ["table", *given, *table, "--seeds", "0,1,2", "--workers", "1", "--budget", "0"],
        ["throughput", *given, "--steps", "1", "--epochs", "1", "--side", "1", "2"],
        ["profile", *given, "--arms", "more", "--steps", "2"],
    )
    assert "4 runs, 0 of them there; 0.0 million images" in said
    assert "6 runs, 4 of them there" in said
    assert "not begun, as the time was up: 2 runs" in said
    text = (tmp_path / "out/table.md").read_text()
    assert "| CE | 2 |" in text
    assert "best test epoch %" in text
    assert "No figure of MORE, table 1 is beside ours" in text
    runs, parts = (pd.read_csv(tmp_path / "out" / f"{n}.csv") for n in ("runs", "throughput"))
    assert sorted(zip(runs["arm"], runs["seed"], strict=True)) == [
        *[("CE", 0), ("CE", 1), ("LA", 0), ("LA", 1)]
    ]
    assert (parts["value"] > 0).all()
    assert {"step", "input", "scoring", "epoch train", "2 at once in turns"} <= {*parts["part"]}
    assert "conv" in (tmp_path / "out/profile.txt").read_text()
