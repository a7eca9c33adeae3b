"""Cost of judging a method, part by part, over the number of classes; of two versions in one run.

    python benchmarks/classes_cost.py --out FILE.csv
    git worktree add /tmp/before COMMIT
    python benchmarks/classes_cost.py --before /tmp/before --out FILE.csv

Scores are made up: three test images a class, half of them right, the others taken for frequent
classes. Every part runs in a process of its own, forked when all is imported, the versions in turn;
one that takes more than `--seconds` of CPU, or some GiB, has no figure. MiB are above what the
process had before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CLASSES, EACH, FEATURES = (100, 500, 1000, 8142), 3, 64
# of address space, of which imports take some
MOST = 14 * 2**30


def kept_mib(name):
    """Return a figure of the process's memory, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def parts_of(classes, folder):
    """Return what is measured, by name, of made up results with so many classes."""
    import numpy as np
    import pandas as pd
    import scipy.stats  # noqa: F401 - what one part imports and another need not counts for none
    import torch
    import torchmetrics  # noqa: F401

    from lt_pipeline.learning.data.distribution import LongTail
    from lt_pipeline.learning.evaluation.diagnostics.separability import class_separability
    from lt_pipeline.learning.evaluation.metrics import classification
    from lt_pipeline.learning.evaluation.metrics.intervals import Outcomes
    from lt_pipeline.learning.figures import evaluation as figures
    from lt_pipeline.learning.figures.distribution import class_distribution

    generator = torch.Generator().manual_seed(0)
    counts = (1000 * np.exp(-6.2 * np.arange(classes) / classes)).astype(int).clip(2)
    longtail = LongTail.from_counts(counts.tolist(), [f"species {c}" for c in range(classes)])
    labels = torch.arange(classes).repeat_interleave(EACH)
    frequent = (torch.rand(len(labels), generator=generator) ** 3 * classes).long()
    right = torch.rand(len(labels), generator=generator) < 0.5
    scores = torch.zeros(len(labels), classes)
    scores[torch.arange(len(labels)), torch.where(right, labels, frequent)] = 1
    matrix = classification.confusion_matrix(scores, labels)
    table = pd.DataFrame(
        {"class": range(classes), "training_images": counts, "test_images": EACH, "recall": 0.5}
    ).to_dict("records")
    features = torch.randn(len(labels), FEATURES, generator=generator)
    # twelve images a class, in six groups
    many = np.repeat(np.arange(classes), 12)
    outcome = np.random.default_rng(0).integers(0, 2, len(many)).astype(float)
    grouped = Outcomes(many, outcome, np.arange(len(many)) // 2)

    def confusion_table():
        if hasattr(classification, "confusion_table"):
            return classification.confusion_table(matrix, longtail.class_names)
        names = longtail.class_names
        return pd.DataFrame(matrix.numpy(), index=names, columns=names)

    def metrics():
        confusion = classification.confusion_matrix(scores, labels)
        classification.report(confusion, longtail)
        classification.class_table(confusion, longtail)

    def save(figure):
        figure.savefig(f"{folder}/picture.png", dpi=120)

    return {
        "metrics, table of classes": metrics,
        "confusion.csv": lambda: confusion_table().to_csv(f"{folder}/confusion.csv"),
        "confusion.png": lambda: save(figures.confusion(matrix, longtail, "x")),
        "recall_by_class.png": lambda: save(figures.recall_by_class(table, longtail, "x")),
        "recall_by_count.png": lambda: save(figures.recall_by_count(table, longtail, "x")),
        "class_distribution.png": lambda: save(class_distribution(longtail, "x")),
        "intervals by class, groups": lambda: classification.class_table(matrix, longtail, grouped),
        "interval of the mean, groups": grouped.interval,
        f"separability, {FEATURES} features": lambda: class_separability(features, labels, classes),
    }


def measured(part, seconds):
    """Return CPU seconds and MiB of ``part`` in a process of its own; None where it is too much."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (MOST, MOST))
        Path("/proc/self/clear_refs").write_text("5")
        before, started = kept_mib("VmRSS"), time.process_time()
        try:
            part()
            took = time.process_time() - started, kept_mib("VmHWM") - before
            os.write(writing, json.dumps(took).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        measurements = json.loads(pipe.read() or "null")
    os.waitpid(child, 0)
    return measurements


def here(classes, seconds):
    """Print what every part takes with the version that is imported, as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        parts = parts_of(classes, folder)
        parts["class_distribution.png"]()  # fonts
        print(json.dumps({name: measured(part, seconds) for name, part in parts.items()}))


def version(project, classes, seconds):
    """Return what every part takes with the version in ``project``."""
    environment = {**os.environ, "PYTHONPATH": str(project / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--here", str(classes), "--seconds", str(seconds)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, nargs="+", default=CLASSES)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--here", type=int)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.here:
        here(given.here, given.seconds)
        return
    import pandas as pd
    import torch

    projects = {"": Path(__file__).parents[1]}
    projects |= {"_before": given.before.resolve()} if given.before else {}
    rows = []
    for classes in given.classes:
        versions = {v: version(path, classes, given.seconds) for v, path in projects.items()}
        for part in versions[""]:
            row = {"classes": classes, "part": part}
            for suffix, of in versions.items():
                took = of[part] or (None, None)
                row |= dict(zip((f"seconds{suffix}", f"mib{suffix}"), took, strict=True))
            if row.get("seconds") and row.get("seconds_before"):
                row["ratio"] = row["seconds_before"] / row["seconds"]
            rows.append(row)
            print(row, flush=True)
    table = pd.DataFrame(rows).round(3)
    table["torch"], table["machine"] = torch.__version__, platform.processor() or platform.machine()
    if given.out:
        table.to_csv(given.out, index=False)


if __name__ == "__main__":
    main()
