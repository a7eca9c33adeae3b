"""Refuse wrong parameters before DVC deletes anything: ``python -m lt_pipeline.versioning.check``.

DVC deletes the outputs of a stage before it starts its command. All stages of dvc.yaml rest on a
file that this one writes, so that it goes first whenever a parameter has changed. The methods' file
has a hash of the code that all of them rest on, which is listed here in place of in each of them.
"""

from __future__ import annotations

from pathlib import Path

import click
import yaml

from lt_pipeline.io.conf_loader import ConfLoader
from lt_pipeline.io.yaml_text import LOADER
from lt_pipeline.learning import methods
from lt_pipeline.learning.experiments.config import ExperimentConfig, check_parameters
from lt_pipeline.learning.schema import UserError, block_of
from lt_pipeline.learning.studies.comparison import CompareConfig
from lt_pipeline.settings import CONFIG_LOADER_ARGS
from lt_pipeline.versioning.git import hashed

CHECK, PARAMETERS, CODE = "check", "parameters.txt", "code.txt"
# always the same: what rests on it does not run again because something was checked
WRITTEN = "Every method can be configured by the parameters.\n"


def path_of(env: str, project: Path) -> Path:
    """Return where the stages of ``env`` belong: beside its parameters, or into the project."""
    folder = project if env == CONFIG_LOADER_ARGS["base_env"] else project / "conf" / env
    return folder / "dvc.yaml"


def check(project: Path, env: str, names: tuple[str, ...] = ()) -> None:
    """Resolve the methods ``names``, all unless told, with the parameters of ``env``.

    Raises:
        UserError: in one line, naming the parameter that is wrong and what would be right.
    """
    parameters = ConfLoader(str(project / "conf"), env, **CONFIG_LOADER_ARGS)["parameters"]
    check_parameters(parameters)
    CompareConfig.read(block_of(parameters, "compare"))
    for name in names or methods.available():
        ExperimentConfig.resolve(name, parameters)


@click.command(help=__doc__)
@click.option("--env", default=CONFIG_LOADER_ARGS["base_env"], help="Folder of conf/.")
@click.option("--methods", "names", default="", help="These only, split at commas.")
@click.argument("folder", type=click.Path(path_type=Path))
def main(env: str, names: str, folder: Path) -> None:
    """Check, and write both files into ``folder``."""
    project = Path.cwd()
    try:
        check(project, env, tuple(filter(None, names.split(","))))
    except UserError as error:
        raise click.ClickException(str(error)) from error
    stages = yaml.load(path_of(env, project).read_text(), Loader=LOADER)["stages"]
    lines = [f"{hashed(project / name)}  {name}\n" for name in stages[CHECK]["deps"]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PARAMETERS).write_text(WRITTEN)
    (folder / CODE).write_text("".join(lines))


if __name__ == "__main__":
    main()
