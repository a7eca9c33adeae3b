from __future__ import annotations

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lt_pipeline.io.yaml_text import check_yaml


def refusal(text, **options):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        check_yaml(text, "conf/f.yml", **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "1:50",
            "conf/f.yml: YAML reads 1:50 as 110, .*: write 50 if it is a",
        ),
        ("2:00:30", "YAML reads 2:00:30 as 7230"),
        ("1:50.5", "YAML reads 1:50.5 as 110.5"),
        ("010", "YAML reads 010 as 8: write 10, without the leading zero, or 8"),
        ("-010", "write -10"),
        ("0_10", "YAML reads 0_10 as 8"),
        ("00.5", "write 0.5"),
        ("seed: 1\ndata: {ratio: [1, 1:50]}\n", "conf/f.yml, line 2: data.ratio: YAML reads 1:50"),
        ("a: {b: 010}", "conf/f.yml: a.b: YAML reads 010 as 8"),
        ("a: 1\nb:\n\tc: 1\n", "conf/f.yml, line 3: is no YAML: .*cannot start any token"),
        ("a: 1\nb: \x00\n", "conf/f.yml, line 2: is no YAML: .*not allowed"),
        ("a: {b: 1\nc: 2\n", "conf/f.yml, line 2: is no YAML: .*expected ',' or '}'"),
        ("a: *b\n", "is no YAML: .*undefined alias"),
        ("a: 1\nb: {c: 1, c: 2}\n", "conf/f.yml, line 2: b.c is there twice"),
        ("a: 1\n\na: 2\n", "conf/f.yml, line 3: a is there twice"),
        ("[a]: 1", "a name must be a text"),
        ("~: 1", "a name must be a text"),
        ("0_7", "write 7, without the leading zero"),
        ('a: !!int "010"', "a: YAML reads 010 as 8"),
        ("a: 1\nb: !!python/name:os.system\n", "line 2: b: !!python/name:os.system is no kind of"),
        ("a: [1, !!binary MjA=]", "a: !!binary is no kind of parameter"),
        ("!!set {a, b}", "conf/f.yml: !!set is no kind of parameter"),
        ("a: !own 1", "a: !own is no kind of parameter"),
        ("a: =", "a: !!value is no kind of parameter"),
        ("a: &a [*a]", "conf/f.yml: is nested too deeply, or stands within itself"),
        ("[" * 9999, "conf/f.yml: is (nested too deeply|no YAML)"),
    ],
)
def test_what_is_misread_is_named_with_its_line_and_the_right_spelling(text, message):
    assert re.search(message, refusal(text))


@pytest.mark.parametrize("text", ["- 1", "text"])
def test_a_file_of_parameters_is_a_block(text):
    check_yaml(text, "papers.yml")
    assert "must be a block of parameters" in refusal(text, block=True)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "# only this",
            "0",
            "-0.5",
            "1e-05",
            ".5",
            "0x1f",
            "1_000",
            "'010'",
            '"1:50"',
        ),
        *(
            "1:99",
            "head:6379",
            "08",
            "2026-01-01",
            "a: &b {c: 1}\nd: {<<: *b, e: 2}\n",
            "0:50",
            "-",
        ),
    ],
)
def test_what_is_as_it_looks_is_taken(text):
    check_yaml(text, "f", block=False)


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none())
def test_numbers_as_they_are_written_are_taken(value):
    check_yaml(yaml.safe_dump(value), "f")


@given(st.text(max_size=12))
def test_any_text_is_taken_or_refused_in_one_line(text):
    try:
        check_yaml(text, "f")
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
