"""A deployed model that takes files, where this package is not."""

from __future__ import annotations

import base64
import io
import json
import os
import shlex
import shutil
import signal
import sys
import urllib.error
import urllib.request
from dataclasses import replace

import mlflow
import numpy as np
import pytest
import torch
from mlflow.pyfunc.scoring_server import get_cmd
from PIL import Image

import warm
from addresses import free_port, wait_for
from lt_pipeline.learning.data.packed import PackedImages, mapped, pack
from lt_pipeline.learning.data.prepare import DataConfig
from lt_pipeline.learning.engine.predict import predict
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.schema import UserError
from lt_pipeline.serving.config import ServeConfig
from lt_pipeline.serving.export import deploy
from toys import toy_card, toy_images

SIZE = 16
SERVE = {"max_bytes": 50_000, "max_pixels": 100_000}
# what a client without this package does
CLIENT = """
import json, sys, mlflow, pandas
try:
    import lt_pipeline
except ImportError:
    pass
else:
    raise SystemExit("the package is on the server")
model = mlflow.pyfunc.load_model(sys.argv[1])
files = [open(path, "rb").read() for path in sys.argv[2:]]
print(json.dumps(model.predict(pandas.DataFrame({"image": files})).to_dict("records")))
"""


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(height=90, width=120):
    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def with_alpha():
    image = photo().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(photo(), "JPEG", exif=exif)


def deep():
    levels = np.asarray(photo().convert("L")).astype(np.uint16) * 256 + 99
    return encoded(Image.fromarray(levels), "PNG")


def drawn():
    """PostScript, which Pillow would give to another program."""
    return encoded(photo(20, 20), "EPS")


GOOD = {
    "jpeg.jpg": encoded(photo(), "JPEG"),
    "large.jpg": encoded(photo(270, 360), "JPEG"),
    "png.png": encoded(photo(), "PNG"),
    "webp.webp": encoded(photo(), "WEBP"),
    "turned.jpg": turned(),
    "grey.jpg": encoded(photo().convert("L"), "JPEG"),
    "cmyk.jpg": encoded(photo().convert("CMYK"), "JPEG"),
    "cmyk.tif": encoded(photo().convert("CMYK"), "TIFF"),
    "palette.gif": encoded(photo().convert("P", palette=Image.Palette.ADAPTIVE), "GIF"),
    "palette.png": encoded(photo().convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
    "16bit.png": deep(),
    "alpha.png": encoded(with_alpha(), "PNG"),
    "alpha.webp": encoded(with_alpha(), "WEBP"),
}
BAD = {
    "encoded.jpg": (base64.b64encode(GOOD["webp.webp"]), "is text in base64"),
    "text.jpg": (b"no image", "is no image that can be read"),
    "empty.jpg": (b"", "is no image that can be read"),
    "cut.jpg": (GOOD["jpeg.jpg"][:-400], "cannot be read: image file is truncated"),
    "cut.png": (GOOD["png.png"][:900], "cannot be read: "),
    "heavy.png": (GOOD["png.png"] + bytes(50_000), "bytes, more than 50,000: make it smaller"),
    "huge.png": (encoded(Image.new("1", (1000, 101)), "PNG"), "1000 x 101 pixels, more than 100,0"),
    "drawn.eps": (drawn(), "is PostScript"),
}


@pytest.fixture(scope="module")
def experiment():
    photos = {"source": "folder", "path": "photos", "profile": {"name": "natural"}, "size": SIZE}
    settings = DataConfig(**photos, fit="pad").model_dump(mode="json")
    config = ExperimentConfig.resolve("ce", {"model": {"backbone": "resnet8"}})
    return Experiment(config, replace(toy_card(channels=3), settings=settings))


@pytest.fixture(scope="module")
def logged(experiment, tmp_path_factory, empty_database):
    """A model that takes files: its weights, where it is, and the address of its store."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{shutil.copy(empty_database, folder / 'm.db')}"
    mlflow.set_tracking_uri(uri)
    torch.manual_seed(0)
    method = experiment.build()
    method.merge_for_inference()
    # sure of itself, so that another pixel would be seen
    more = {True: 20.0, False: 1.0}
    weights = {n: w * more["head" in n] for n, w in method.state_dict().items()}
    kept = mlflow.create_experiment("photos", (folder / "artifacts").as_uri())
    images = toy_images(channels=3, size=SIZE)
    with mlflow.start_run(experiment_id=kept):
        metrics = {"test": {"accuracy": 0.5}}
        deployed = deploy(experiment, weights, images, metrics, {"register": False}, SERVE)
    yield weights, deployed["model_uri"], uri
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """The environment of a machine without this package."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "lt_pipeline").mkdir()
    (folder / "lt_pipeline" / "__init__.py").write_text("raise ImportError('is not installed')")
    return {**os.environ, "PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    contents = {**GOOD, **{name: content for name, (content, _) in BAD.items()}}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def evaluated(experiment, logged, files):
    """What the evaluation makes of the good files: they are packed, and scored as a test set is."""
    paths = [files / name for name in GOOD]
    assert pack(paths, files / "packed.npy", SIZE, "pad") == {}
    count = len(paths)
    data = PackedImages(
        mapped(files / "packed.npy"), torch.arange(count), torch.zeros(count).long(), ("a",)
    )
    method = experiment.finished(logged[0])
    scores = predict(method, method.score, data, device=torch.device("cpu"))
    probabilities = scores.softmax(1).numpy()
    assert np.ptp(probabilities, axis=0).max() > 0.05, "the files look alike to the model"
    return dict(zip(GOOD, probabilities, strict=True))


def check(rows, names, evaluated, class_names):
    """Good files are answered as in the evaluation, bad ones by an error and nothing else."""
    assert len(rows) == len(names)
    for name, row in zip(names, rows, strict=True):
        assert list(row) == ["class", "probability", "probabilities", "ood_score", "error"]
        if name in GOOD:
            wanted = evaluated[name]
            np.testing.assert_allclose(row["probabilities"], wanted, atol=1e-5, err_msg=name)
            assert row["class"] == class_names[wanted.argmax()]
            assert row["probability"] == max(row["probabilities"])
            np.testing.assert_allclose(row["ood_score"], wanted.max(), atol=1e-5)
            assert row["error"] is None
        else:
            assert BAD[name][1] in row["error"], name
            assert "\n" not in row["error"]
            assert "object at" not in row["error"]
            assert {*row.values()} == {None, row["error"]}


def test_served_probabilities_are_the_evaluations_and_bad_files_are_rows(
    logged, files, elsewhere, evaluated, experiment
):
    _, model, uri = logged
    # a bad one first, last, and among good ones
    names = ["text.jpg", *(n for pair in zip(GOOD, [*BAD, *GOOD], strict=False) for n in pair)]
    names += ["cut.jpg"]
    command = [sys.executable, "-c", CLIENT, model, *(str(files / name) for name in names)]
    client = warm.Process(command, files, {**elsewhere, "MLFLOW_TRACKING_URI": uri})
    said, _ = client.communicate(timeout=300)
    assert client.returncode == 0, said
    rows = json.loads(said.splitlines()[-1])
    assert {*names} == {*GOOD, *BAD}
    check(rows, names, evaluated, experiment.card.longtail.class_names)


@pytest.mark.slow
def test_the_server_answers_every_payload_that_decodes(
    logged, files, elsewhere, evaluated, experiment
):
    """The process that ``mlflow models serve`` starts; a served champion is one by that name."""
    _, model, uri = logged
    mlflow.set_tracking_uri(uri)
    address = f"http://127.0.0.1:{(port := free_port())}"
    where = mlflow.artifacts.download_artifacts(model)
    command, environment = get_cmd(where, port=port, host="127.0.0.1", nworkers=1)
    words = [sys.executable, "-m", *shlex.split(command)]
    server = warm.Process(words, files, {**environment, **elsewhere})
    names = ["jpeg.jpg", "text.jpg", "turned.jpg", "cut.jpg", "heavy.png", "cmyk.jpg"]
    sent = [base64.b64encode((files / name).read_bytes()).decode() for name in names]
    by_split = {"columns": ["image"], "data": [[text] for text in sent]}
    payloads = [
        {"dataframe_split": by_split},
        {"dataframe_records": [{"image": text} for text in sent]},
    ]
    try:
        wait_for(f"{address}/ping", server)
        for payload in payloads:
            rows = json.loads(ask(address, payload))["predictions"]
            check(rows, names, evaluated, experiment.card.longtail.class_names)
        (row,) = json.loads(ask(address, {"inputs": {"image": sent[:1]}}))["predictions"]
        assert row["error"].startswith("the file is text in base64: send it once encoded")
        for wrong in ({"image": None}, {"image": "12345"}, {"photo": sent[0]}):
            with pytest.raises(urllib.error.HTTPError) as refused:
                ask(address, {"dataframe_records": [wrong]})
            assert refused.value.code == 400
            assert "Traceback" not in refused.value.read().decode()
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=30)


def ask(address, body):
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def test_the_server_needs_four_packages(logged):
    _, model, uri = logged
    mlflow.set_tracking_uri(uri)
    needed = mlflow.pyfunc.get_model_dependencies(model)
    with open(needed) as file:
        names = [line.split("==")[0] for line in file.read().split()]
    assert sorted(names) == ["mlflow", "numpy", "pillow", "torch"]


@pytest.mark.parametrize(
    ("source", "given", "takes"),
    [
        ("digits", "auto", "tensor"),
        ("digits", "tensor", "tensor"),
        ("folder", "auto", "image"),
        ("folder", "image", "image"),
        ("folder", "tensor", "tensor"),
    ],
)
def test_what_a_model_takes_follows_from_its_data_unless_told(source, given, takes):
    files = {"path": "photos", "profile": {"name": "natural"}} if source == "folder" else {}
    assert ServeConfig(input=given).takes(DataConfig(source=source, **files)) == takes


def test_a_benchmarks_model_takes_no_files():
    with pytest.raises(UserError, match=r"serve\.input: image is for .* data\.source is digits"):
        ServeConfig(input="image").takes(DataConfig())
