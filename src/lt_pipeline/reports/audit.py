"""An audit as one HTML page: what there is, four pictures a class, what is there twice."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import pandas as pd

from lt_pipeline.learning.data.decode import open_rgb

NEXT = """Next, a head on what a frozen network makes of the images, in minutes:
  kedro run --pipelines={head} --env={name}
and the network itself, better on a GPU:
  kedro run --pipelines=more --env={name}"""
THUMBNAIL, A_CLASS, MOST_PAIRS = 80, 4, 40
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse } td, th { padding: .2em .6em; text-align: right }
td:first-child, th:first-child, td:nth-child(3), td:last-child { text-align: left }
td:last-child { white-space: nowrap } tr { border-bottom: 1px solid #ddd }
.bar { background: #4477aa; height: .8em; display: inline-block } img { margin: 1px }
figure { display: inline-block; margin: .4em; font-size: 12px; text-align: center }
figcaption { max-width: 210px; overflow-wrap: anywhere }
"""


def page(
    title: str,
    folder: Path,
    facts: pd.DataFrame,
    pairs: pd.DataFrame,
    classes: pd.DataFrame,
    notes: Sequence[str],
) -> str:
    """Return the page; ``facts``, ``pairs`` and ``classes`` are an audit's, with class names."""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
        f"<style>{STYLE}</style><h1>{escape(title)}</h1><ul>{items}</ul>"
        f"<h2>Classes</h2>{_classes(folder, facts, classes)}"
        f"<h2>Alike</h2>{_pairs(folder, pairs)}</html>"
    )


def _classes(folder: Path, facts: pd.DataFrame, classes: pd.DataFrame) -> str:
    most = max(classes["images"].max(), 1)
    head = ("class", "images", "", "groups", "train", "validation", "test", "")
    rows = []
    for _, row in classes.sort_values("images", ascending=False).iterrows():
        width = 160 * row["images"] / most
        cells = [
            escape(str(row["class"])),
            str(row["images"]),
            f"<span class=bar style='width:{width:.0f}px'></span>",
            *(str(row[name]) for name in ("groups", "train", "validation", "test")),
            _examples(folder, facts[facts["label"] == row["class"]]),
        ]
        rows.append("".join(f"<td>{cell}</td>" for cell in cells))
    heads = "".join(f"<th>{name}</th>" for name in head)
    return f"<table><tr>{heads}</tr><tr>{'</tr><tr>'.join(rows)}</tr></table>"


def _examples(folder: Path, own: pd.DataFrame) -> str:
    """Return pictures of a class, of as many groups as there are."""
    groups = own.drop_duplicates("group")
    some = pd.concat([groups, own]).drop_duplicates("path")["path"].head(A_CLASS)
    return "".join(_image(folder / path) for path in some)


def _pairs(folder: Path, pairs: pd.DataFrame) -> str:
    """Return pairs side by side, the worst first: in two classes, then in two groups."""
    if pairs.empty:
        return "<p>No two images are equal or look alike.</p>"
    order = pairs.assign(equal=pairs["kind"] != "identical")
    order = order.sort_values(["same_class", "equal", "same_group"], kind="stable")
    shown = order.head(MOST_PAIRS)
    more = len(pairs) - len(shown)
    rest = f"<p>{more} more pairs are in pairs.csv.</p>" if more else ""
    return "".join(_pair(folder, row) for _, row in shown.iterrows()) + rest


def _pair(folder: Path, row: pd.Series) -> str:
    where = ["the same labels" if row["same_class"] else "other labels"]
    where.append("one group" if row["same_group"] else "two groups")
    text = "<br>".join(escape(line) for line in (row["kind"], *where, row["one"], row["other"]))
    images = _image(folder / row["one"]) + _image(folder / row["other"])
    return f"<figure>{images}<figcaption>{text}</figcaption></figure>"


def _image(path: Path) -> str:
    """Return a picture inside of the page, so that it can be sent as one file."""
    image = open_rgb(path, at_least=THUMBNAIL)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=70)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<img src='data:image/webp;base64,{data}' title='{escape(path.name, quote=True)}'>"


def summary(notes: Iterable[str], environment: Mapping[str, str]) -> str:
    """Return what the terminal shows at the end."""
    lines = "\n".join(f"  - {note}" for note in notes)
    return f"{lines}\n\n{NEXT.format(**environment)}"
