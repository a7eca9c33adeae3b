"""Kedro's own ``run``, its values taken as they look, its errors in a line; and ``folders``."""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import copy
from functools import wraps
from typing import Any

import click
from kedro.framework.cli.project import run as kedros
from kedro.framework.startup import ProjectMetadata

from lt_pipeline.hooks.session import SEQUENTIAL
from lt_pipeline.learning.schema import UserError
from lt_pipeline.reports.command_line import read, split

Read = Callable[[click.Context, click.Parameter, Any], Any]


def _params(context: click.Context, option: click.Parameter, given: Any) -> Any:
    """Read what is given as it looks, lists too; Kedro would cut them at their commas."""
    if not isinstance(given, str):
        return given
    try:
        return read(split(given)) if given else {}
    except UserError as error:
        raise click.ClickException(f"--params: {error}") from None


def _runner(context: click.Context, option: click.Parameter, given: Any) -> Any:
    """Refuse what would make several threads or processes of a run."""
    if given and str(given).rpartition(".")[2] != "SequentialRunner":
        name = "--async" if given is True else f"--runner={given}"
        raise click.ClickException(SEQUENTIAL.format(given=name))
    return given


OWN: dict[str | None, Read] = {"params": _params, "runner": _runner, "is_async": _runner}


def _read(option: click.Parameter) -> click.Parameter:
    """Return ``option``, read as it is here."""
    own = copy(option)
    own.callback = OWN.get(option.name, option.callback)
    return own


def _in_one_line(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``command``, which says in one line what went wrong outside of nodes."""

    @wraps(command)
    def caught(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except Exception:
            # MLflow and all else is imported by settings.py, which is quicker at it
            from lt_pipeline.hooks.errors import one_line

            with one_line():
                raise

    return caught


def where_it_belongs(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``command``, run where a study that is asked for says, unless an env is told."""

    @wraps(command)
    def placed(*args: Any, **kwargs: Any) -> Any:
        given = kwargs["env"] or os.environ.get("KEDRO_ENV") or kwargs["conf_source"]
        if not given:
            from lt_pipeline.pipeline_registry import env_of

            kwargs["env"] = env_of([*kwargs["pipelines"], kwargs["pipeline"]])
        return command(*args, **kwargs)

    return placed


run = copy(kedros)
run.params = [_read(option) for option in kedros.params]
run.callback = _in_one_line(where_it_belongs(kedros.callback)) if kedros.callback else None


@click.command()
@click.option("--remove", multiple=True, metavar="NAME", help="Remove it; may be given again.")
@click.option("--remove-unused", is_flag=True, help="Remove all with a + that no run is using.")
@click.pass_obj
def folders(metadata: ProjectMetadata, remove: tuple[str, ...], remove_unused: bool) -> None:
    """List what runs wrote to data/, a line a folder, or remove some of it."""
    # no other command needs it
    from lt_pipeline.reports.folders import listed, removed

    try:
        if remove or remove_unused:
            click.echo(removed(metadata.project_path, remove, remove_unused))
        else:
            click.echo(listed(metadata.project_path))
    except UserError as error:
        raise click.ClickException(str(error)) from None


cli = click.Group("lt_pipeline", commands={"run": run, "folders": folders})
