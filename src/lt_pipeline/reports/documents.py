"""The comparison as Markdown, LaTeX and HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import pandas as pd

from lt_pipeline.learning.evaluation.metrics.catalog import HEADLINES, Metric, named, of_task
from lt_pipeline.reports.differences import Paired

Values = dict[str, Any]
Records = Sequence[Mapping[str, Any]]

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "<": "$<$", ">": "$>$",
}  # fmt: skip


class Row(NamedTuple):
    """A line of the table; a paper's stands below the method that it is of."""

    cells: list[str]
    of_paper: bool


def table_rows(
    summary: pd.DataFrame,
    beside: Records,
    metrics: Mapping[str, Metric],
    first: str = "method",
    *,
    gaps: bool = False,
    paired: Paired | None = None,
    settings: Sequence[str] = (),
) -> tuple[list[str], list[Row]]:
    """Return headings, and the rows of methods and of papers as text.

    A mean over seeds has its standard deviation behind it, a single run's accuracy its bootstrap
    interval. ``summary`` goes by ``label``, whose heading is ``first``; those of ``metrics`` that
    no row has are left out. With ``gaps`` a paper's figure has behind it how far we are above it.
    ``paired`` adds its columns behind that of its metric, where there are differences;
    ``settings`` are columns of text in front of all metrics.
    """
    metrics = {name: m for name, m in metrics.items() if summary[name].notna().any()}
    paired = paired if paired and paired.there(summary) else None
    names = list(metrics)
    place = (
        names.index(paired.metric.key) + 1 if paired and paired.metric.key in names else len(names)
    )
    rows = []
    for own in summary.to_dict("records"):
        cells = [_cell(own, metric) for metric in metrics.values()]
        cells[place:place] = paired.cells(own) if paired else []
        values = [str(own[name]) for name in settings]
        rows.append(Row([own["label"], str(own["runs"]), *values, *cells], of_paper=False))
        given = [figure for figure in beside if figure["label"] == own["label"]]
        for source in dict.fromkeys(figure["source"] for figure in given):
            theirs = {f["metric"]: f for f in given if f["source"] == source}
            texts = [
                _paper_cell(theirs[n], m, gaps) if n in theirs else "" for n, m in metrics.items()
            ]
            texts[place:place] = paired.cells_of_paper(own, source, beside) if paired else []
            rows.append(Row([source, "", *("" for _ in settings), *texts], of_paper=True))
    headings = [metric.column for metric in metrics.values()]
    headings[place:place] = paired.headings if paired else []
    return [first, "runs", *settings, *headings], rows


def _cell(row: Mapping[Any, Any], metric: Metric) -> str:
    if pd.isna(row[metric.key]):
        return "-"
    text = metric.number(row[metric.key])
    if row["runs"] > 1:
        spread = row[f"{metric.key} sd"]
        # what is counted, as parameters are, and always the same needs no spread
        none = pd.isna(spread) or (spread == 0 and metric.digits == 0)
        return text if none else f"{text} ± {metric.number(spread)}"
    ends = [row.get(f"{metric.key} {end}", float("nan")) for end in ("low", "high")]
    # where every image is right, or none, drawing them again cannot tell how sure that is
    if pd.isna(ends[0]) or ends[0] == ends[1]:
        return text
    return f"{text} [{', '.join(map(metric.number, ends))}]"


def _paper_cell(figure: Mapping[str, Any], metric: Metric, gap: bool) -> str:
    """Return a paper's figure and, where it is asked for, ours minus it in brackets."""
    text = metric.number(figure["paper"])
    return f"{text} ({metric.change(figure['ours'] - figure['paper'])})" if gap else text


def markdown(headings: Sequence[str], rows: Sequence[Row]) -> str:
    """Return the table in Markdown; papers' figures are in italics."""
    lines = [
        "| " + " | ".join(headings) + " |",
        "|" + "---|" + "---:|" * (len(headings) - 1),
    ]
    for row in rows:
        cells = [f"*{c}*" if row.of_paper and c else c for c in row.cells]
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def latex(headings: Sequence[str], rows: Sequence[Row], caption: str) -> str:
    r"""Return the table in LaTeX, for a preamble with \usepackage{booktabs}."""
    body = []
    for row in rows:
        cells = [_latex_text(cell) for cell in row.cells]
        if row.of_paper:
            cells = [rf"\textit{{{cell}}}" if cell else "" for cell in cells]
        body.append(" & ".join(cells) + r" \\")
    return "\n".join(
        [
            f"% {caption}",
            rf"\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}",
            r"\toprule",
            " & ".join(map(_latex_text, headings)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _latex_text(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)


def html_table(headings: Sequence[str], rows: Sequence[Row]) -> str:
    """Return the table as an HTML fragment."""
    # a method's name in a heading may be long
    head = "".join(f"<th>{escape(h).replace('_', '_<wbr>')}</th>" for h in headings)
    lines = [f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>"]
    for row in rows:
        kind = ' class="paper"' if row.of_paper else ""
        cells = "".join(f"<td>{_html_cell(cell)}</td>" for cell in row.cells)
        lines.append(f"<tr{kind}>{cells}</tr>")
    return "\n".join([*lines, "</tbody>\n</table>"]) + "\n"


def _html_cell(text: str) -> str:
    """Return the cell with the spread behind a number in small type on a line of its own."""
    for mark in (" ± ", " [", " ("):
        number, sep, rest = text.partition(mark)
        if sep and number.replace(",", "").replace(".", "").lstrip("+-").isdigit():
            spread = escape((mark + rest).strip()).replace(", ", ", <wbr>")
            return f"{escape(number)}<small>{spread}</small>"
    return escape(text)


def gap_rows(beside: Records) -> tuple[list[str], list[Row]]:
    """Return the table of what a method has more or less than a paper, in points of a per cent."""
    metrics = [named(key) for key in dict.fromkeys(figure["metric"] for figure in beside)]
    rows = []
    for label, source in dict.fromkeys((figure["label"], figure["source"]) for figure in beside):
        own = [f for f in beside if (f["label"], f["source"]) == (label, source)]
        gaps = {f["metric"]: named(f["metric"]).change(f["ours"] - f["paper"]) for f in own}
        reason = own[0]["reason"] or "none given in conf/base/papers.yml"
        cells = [label, source, *(gaps.get(m.key, "") for m in metrics), reason]
        rows.append(Row(cells, of_paper=False))
    return ["method", "paper", *(m.plain for m in metrics), "reason"], rows


def run_rows(runs: pd.DataFrame) -> tuple[list[str], list[Row]]:
    """Return the table of the runs that were compared, for tracing them back."""
    accuracy = of_task(HEADLINES, runs)
    headings = ["method", "seed", accuracy.column, "MLflow run", "commit", "command"]
    rows = [
        Row(
            [
                run["label"],
                str(run["seed"]),
                accuracy.number(run[accuracy.key]),
                str(run["run_id"]),
                str(run["commit"])[:10],
                str(run["command"]),
            ],
            of_paper=False,
        )
        for run in runs.sort_values(["label", "seed"]).to_dict("records")
    ]
    return headings, rows


STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: #1b1b1b;
  margin: 0 auto; padding: 1.5rem 1.5rem 4rem; max-width: 1480px; background: #fff; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
.lead { color: #555; margin: 0 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 12.5px; }
th { text-align: right; vertical-align: bottom; border-bottom: 1.5px solid #333; padding: 4px 5px;
  font-weight: 600; max-width: 7em; cursor: pointer; }
th[aria-sort=descending]::after { content: " ▾"; } th[aria-sort=ascending]::after { content: " ▴"; }
td { text-align: right; padding: 4px 5px; border-bottom: 1px solid #eee; white-space: nowrap;
  vertical-align: top; }
th:first-child, td:first-child { text-align: left; padding-left: 0; position: sticky; left: 0;
  background: #fff; }
td small { display: block; color: #777; font-size: 11px; line-height: 1.2; }
tr.paper td { color: #0072B2; font-style: italic; } tr.paper td:first-child { padding-left: 1em; }
table.text td, table.text th { text-align: left; white-space: normal; min-width: 5em;
  max-width: 34em; overflow-wrap: break-word; }
.pictures { display: flex; flex-wrap: wrap; gap: 1.6rem 2.4rem; }
figure { margin: 0; max-width: 680px; } img { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: 13px; }
ul { padding-left: 1.2rem; } li { margin: .15rem 0; }
footer { margin-top: 3rem; color: #777; font-size: 12px; border-top: 1px solid #eee; }
"""


# A click on a heading sorts by its column, from high to low and back; a paper's row stays below the
# method that it is of, and what has no number comes last.
SORT = r"""
for (const head of document.querySelectorAll("th")) {
  head.tabIndex = 0;
  head.title = "sort by this column";
  head.onkeydown = (event) => { if (event.key === "Enter") head.click(); };
  head.onclick = () => {
    const body = head.closest("table").tBodies[0], blocks = [];
    const sign = head.ariaSort === "descending" ? 1 : -1;
    for (const other of head.parentNode.cells) other.ariaSort = null;
    head.ariaSort = sign > 0 ? "ascending" : "descending";
    for (const row of body.rows)
      if (row.className === "paper") blocks.at(-1).push(row); else blocks.push([row]);
    const value = (block) => {
      const text = block[0].cells[head.cellIndex].textContent;
      const number = text.match(/^[+-]?\d[\d,]*(\.\d+)?(?![\w.])/);
      return number ? Number(number[0].replaceAll(",", "")) : text === "-" ? "" : text;
    };
    blocks.sort((one, other) => {
      const [a, b] = [value(one), value(other)];
      if (a === "" || b === "") return (a === "") - (b === "");
      return sign * (typeof a === typeof b ? (a > b) - (a < b) : typeof a === "string" ? 1 : -1);
    });
    body.append(...blocks.flat());
  };
}
"""


class Picture(NamedTuple):
    """A PNG in base64 and what it shows."""

    data: str
    caption: str


def html_report(
    title: str,
    lead: str,
    table: str,
    costs: str,
    sentences: Sequence[str],
    notes: Sequence[str],
    pictures: Sequence[Picture],
    gaps: tuple[list[str], list[Row]],
    runs: tuple[list[str], list[Row]],
) -> str:
    """Return one HTML page that needs nothing beside itself: pictures and style are inside.

    ``table`` and ``costs`` are fragments of HTML; a click on a heading sorts a table.
    """
    parts = [
        f"<h1>{escape(title)}</h1><p class='lead'>{escape(lead)}</p>",
        f"<div class='wide'>{table}</div>",
        _list(sentences),
        f"<h2>Cost</h2><div class='wide'>{costs}</div>",
    ]
    if gaps[1]:
        what = "Gap to the papers, in points: mean minus figure, not paired"
        parts.append(f"<h2>{what}</h2>{_text_table(*gaps)}")
    if notes:
        parts.append(f"<h2>What is not in the table, and what to know of it</h2>{_list(notes)}")
    parts.append("<h2>Pictures</h2><div class='pictures'>")
    parts += [
        f"<figure><img alt='{escape(p.caption, quote=True)}' "
        f"src='data:image/png;base64,{p.data}'><figcaption>{escape(p.caption)}</figcaption></figure>"
        for p in pictures
    ]
    parts.append(f"</div><h2>Runs</h2><div class='wide'>{_text_table(*runs)}</div>")
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n<footer>Written by kedro run --pipelines=compare; a click on a heading sorts.</footer>"
        + f"\n<script>{SORT}</script>\n</body></html>\n"
    )


def _list(sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"<ul>{items}</ul>" if items else ""


def _text_table(headings: Sequence[str], rows: Sequence[Row]) -> str:
    return html_table(headings, rows).replace("<table>", '<table class="text">', 1)
