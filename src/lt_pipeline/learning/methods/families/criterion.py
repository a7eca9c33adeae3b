"""Methods that are a criterion and nothing else: what they are named for cannot be chosen again."""

from __future__ import annotations

from typing import Any

from pydantic import create_model

from lt_pipeline.learning.losses.criteria import CriterionBase
from lt_pipeline.learning.methods.families.base import Method
from lt_pipeline.learning.methods.families.options import MethodOptions


class CriterionMethod(Method):
    """Plain training on one criterion, of which the parameters can be told and the name cannot."""

    one_label = ""

    def __init_subclass__(cls, criterion: CriterionBase, **rest: Any) -> None:
        """Give the method its ``Options``, whose criterion is ``criterion`` unless told."""
        super().__init_subclass__(**rest)
        cls.Options = create_model(
            f"{cls.__name__}Options",
            __base__=MethodOptions,
            __doc__="The criterion is fixed, its parameters are not.",
            __module__=cls.__module__,
            criterion=(type(criterion), criterion),
        )
        # where pickle finds it
        cls.Options.__qualname__ = f"{cls.__qualname__}.Options"
