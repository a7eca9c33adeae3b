from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lt_pipeline.reports import screen
from toys import PROJECT

HEADINGS = ["method", *(f"heading {k}" for k in range(12))]
ROWS = [(["balanced_softmax", *["95.8 [94.0, 97.4]"] * 12], False), (["P, table 1"] * 13, True)]


@pytest.mark.parametrize("columns", ["80", None])
def test_names_are_never_cut_and_no_heading_is_broken_within_a_word(capsys, monkeypatch, columns):
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    else:
        monkeypatch.delenv("COLUMNS", raising=False)
    screen.console().print(screen.table(HEADINGS[:7], [(c[:7], p) for c, p in ROWS]))
    printed = capsys.readouterr().out
    assert "balanced_softmax" in printed
    assert printed.count("heading") == 6
    assert "  P, table 1" in printed


def test_a_log_takes_wide_tables_and_a_terminal_has_its_own_width(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert screen.console().width == screen.LOG_WIDTH
    monkeypatch.setenv("COLUMNS", "97")
    assert screen.console().width == 97


def test_log_lines_are_not_broken_in_what_is_no_terminal():
    script = (
        "import logging.config, yaml; from lt_pipeline.reports.screen import fit_logs; "
        "logging.config.dictConfig(yaml.safe_load(open('conf/logging.yml'))); fit_logs(); "
        "logging.getLogger('lt_pipeline').info('a word ' * 15 + 'the end')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    said = subprocess.run(
        [sys.executable, "-c", script],
        cwd=PROJECT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "a word " * 15 + "the end" in said.stdout + said.stderr
