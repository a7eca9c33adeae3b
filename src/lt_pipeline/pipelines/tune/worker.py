"""A worker of a sweep: ``python -m lt_pipeline.pipelines.tune.worker``, its task on stdin."""

from __future__ import annotations

import logging
import pickle
import signal
import sys

from lt_pipeline.learning.schema import UserError
from lt_pipeline.pipelines.tune.task import Task
from lt_pipeline.tuning.processes import REFUSED, end_with


def main() -> None:
    """Do trials of the study that the task names, until there are enough."""
    logging.basicConfig(level=logging.INFO)
    # Ctrl-C reaches the one that waits for the workers, too, and that one ends them
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    task: Task = pickle.load(sys.stdin.buffer)
    end_with(task.parent)
    try:
        task.work()
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(REFUSED)


if __name__ == "__main__":
    main()
