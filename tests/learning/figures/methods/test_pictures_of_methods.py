"""Pictures belong to methods by their file's name."""

from __future__ import annotations

from pkgutil import iter_modules

from lt_pipeline.learning import methods
from lt_pipeline.learning.figures import methods as pictures
from toys import toy_card


def test_every_file_is_of_a_method():
    assert {module.name for module in iter_modules(pictures.__path__)} <= set(methods.available())


def test_a_method_without_a_file_has_no_pictures():
    assert pictures.draw("ce", {}, toy_card().longtail, "ce on toys") == {}
