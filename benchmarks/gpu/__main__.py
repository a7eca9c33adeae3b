"""The command line: python -m benchmarks.gpu pack|table|throughput|profile (docs/gpu.md)."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from lt_pipeline.learning.schema import UserError

# each is imported when it is asked for: pack needs what a bare machine has not
COMMANDS = ("pack", "table", "throughput", "profile")


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        raise SystemExit(f"usage: python -m benchmarks.gpu {'|'.join(COMMANDS)} [-h] ...")
    module = import_module(f"benchmarks.gpu.{name}")
    parser = argparse.ArgumentParser(f"python -m benchmarks.gpu {name}", description=module.__doc__)
    module.add_arguments(parser)
    try:
        module.main(parser.parse_args(sys.argv[2:]))
    except UserError as error:
        raise SystemExit(f"Error: {error}") from None


if __name__ == "__main__":
    main()
