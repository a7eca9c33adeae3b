"""docs/pictures.py: what can be said without a browser, and one real picture with it."""

from __future__ import annotations

import re
import socket
import sys
import time
from types import SimpleNamespace
from urllib.request import urlopen

import pytest
from PIL import Image

from toys import PROJECT

DOCS = PROJECT / "docs"
sys.path.insert(0, str(DOCS))
import pages  # noqa: E402
import pictures  # noqa: E402

# A process of its own serves, as with MLflow. The page asks for a picture by another host's name.
PAGE = """
import os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Hello(BaseHTTPRequestHandler):
    def do_GET(self):
        open("asked", "a").write(self.headers["Host"] + self.path + "\\n")
        body = b'<body style="background:#cde"><p>waiting</p>'
        body += b'<img src="http://localhost:%d/spy.png">' % self.server.server_port
        body += b'<button onclick="document.body.append(localStorage.length)">kept: </button>'
        body += b'<script>setTimeout(() => { document.body.append("late") }, 300)</script>'
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass

options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if os.fork():
    os.wait()
HTTPServer((options["--host"], int(options["--port"])), Hello).serve_forever()
"""


class Client:
    """Stands for MLflow's, with the runs that docs/pictures.py makes."""

    aliases: tuple[str, ...] = ("champion",)

    def search_experiments(self):
        return [SimpleNamespace(experiment_id=k, name=n) for k, n in (("0", "Default"), ("1", "d"))]

    def search_runs(self, experiments):
        assert experiments == ["1"]
        return [SimpleNamespace(info=SimpleNamespace(run_name="more · d", run_id="abc"))]

    def search_registered_models(self):
        return [SimpleNamespace(name="d", aliases=self.aliases)]


def shots():
    return [*pages.mlflow_shots("http://h/", Client()), *pages.viz_shots("http://v/")]


@pytest.fixture
def server(tmp_path):
    script = tmp_path / "server.py"
    script.write_text(PAGE)
    return sys.executable, str(script)


def test_without_a_browser_one_line_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(pictures, "make_runs", lambda *_: pytest.fail("it began all the same"))
    for variables in ({"CHROMIUM": "/nowhere/chromium"}, {"PATH": str(tmp_path)}):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit, match=r"^Error: no browser: .*apt install chromium") as said:
            pictures.main([])
        assert "\n" not in str(said.value)
        monkeypatch.delenv("CHROMIUM", raising=False)


def test_a_blank_or_a_large_picture_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.new("RGB", (40, 30), "white").save(path)
    with pytest.raises(pages.PictureError, match=r"a\.png is blank"):
        pictures.check(path)
    Image.linear_gradient("L").save(path)
    pictures.check(path)
    monkeypatch.setattr(pictures, "LIMIT_BYTES", 10)
    with pytest.raises(pages.PictureError, match=r"bytes, more than 10"):
        pictures.check(path)


def test_programs_are_told_neither_who_nor_where_they_would_track(tmp_path, monkeypatch):
    monkeypatch.setenv("LOGNAME", "somebody")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    monkeypatch.setenv("OPTUNA_STORAGE", "postgresql://elsewhere")
    told = pictures.environment(tmp_path)
    assert told["LOGNAME"] == "reader"
    assert told["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/mlflow.db"
    assert "OPTUNA_STORAGE" not in told


def listens(port):
    with socket.socket() as client:
        return client.connect_ex((pictures.HOST, port)) == 0


def test_a_server_is_waited_for_and_ended(tmp_path, server):
    with pictures.served(tmp_path, *server) as address:
        assert urlopen(address).status == 200
        port = int(address.rstrip("/").split(":")[-1])
        assert port in pictures.PORTS
    until = time.monotonic() + 5
    while listens(port) and time.monotonic() < until:
        time.sleep(0.05)
    assert not listens(port)
    with (
        pytest.raises(pages.PictureError, match="did not answer"),
        pictures.served(tmp_path, sys.executable, "-c", "raise SystemExit(1)"),
    ):
        pass


def test_a_run_that_fails_is_told_by_its_last_line(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "program", lambda _: sys.executable)
    (tmp_path / "run").write_text("import sys; print('much'); sys.exit('Error: no such method')")
    with pytest.raises(pages.PictureError, match=r"^kedro run -x failed: Error: no such method$"):
        pictures.make_runs(tmp_path, [("-x",)])


def test_without_a_champion_there_is_no_page_of_it(monkeypatch):
    monkeypatch.setattr(Client, "aliases", ("newest",))
    with pytest.raises(pages.PictureError, match="alias champion"):
        shots()


def test_the_docs_show_every_picture_small_and_with_nothing_in_it_but_pixels():
    text = (DOCS / "ui.md").read_text()
    shown = re.findall(r"!\[[^\]]{20,}\]\(pictures/(\w+)\.png\)", text)
    assert shown == list(dict.fromkeys(shown))
    assert set(shown) == {shot.name for shot in shots()}
    assert {path.stem for path in pictures.PICTURES.iterdir()} == set(shown)
    for shot in shots():
        path = pictures.PICTURES / f"{shot.name}.png"
        pictures.check(path)
        with Image.open(path) as picture:
            assert picture.size == (pictures.WIDTH, shot.height)
            assert not picture.info.keys() - {"dpi", "srgb", "gamma"}


def _press(page):
    page.get_by_text("late").wait_for()
    page.get_by_role("button").click()


def test_a_real_page_is_taken_once_its_words_are_there(tmp_path, server, monkeypatch):
    pytest.importorskip("playwright")
    try:
        pictures.chromium()
    except pages.PictureError as error:
        pytest.skip(str(error))
    with pictures.browser() as browser, pictures.served(tmp_path, *server) as address:
        # what a reader gets, whose browser has kept nothing
        shot = pages.Shot("hello", address, ["late0"], _press, height=300)
        path = pictures.take(browser, shot, tmp_path)
        monkeypatch.setattr(pictures, "PAGE_MS", 500)
        other = pages.Shot("other", address, ["never there"])
        with pytest.raises(pages.PictureError, match=r"^other\.png cannot be taken: .*never there"):
            pictures.take(browser, other, tmp_path)
    with Image.open(path) as picture:
        assert picture.size == (1400, 300)
        assert picture.convert("RGB").getpixel((1300, 250)) == (0xCC, 0xDD, 0xEE)
    asked = (tmp_path / "asked").read_text()
    assert "127.0.0.1" in asked
    assert "localhost" not in asked
    assert not (tmp_path / "other.png").exists()
