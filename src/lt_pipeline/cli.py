"""Kedro's own commands, but that ``run --params`` takes values as they look."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import click
from kedro.framework.cli.project import run as kedros
from kedro.framework.cli.utils import split_string

from lt_pipeline.reports.command_line import check_item

Callback = Callable[[click.Context, click.Parameter, Any], Any]


def _checked(option: click.Parameter) -> click.Parameter:
    """Return the option ``--params``, which refuses in one line what Kedro would misread."""
    read: Any = option.callback

    def check(context: click.Context, parameter: click.Parameter, given: Any) -> Any:
        try:
            for item in split_string(context, parameter, given) if isinstance(given, str) else ():
                check_item(item)
        except ValueError as error:
            raise click.ClickException(f"--params: {error}") from None
        return read(context, parameter, given)

    own = copy(option)
    own.callback = check
    return own


run = copy(kedros)
run.params = [_checked(option) if option.name == "params" else option for option in kedros.params]
cli = click.Group("lt_pipeline", commands={"run": run})
