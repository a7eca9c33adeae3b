"""Tracked pipelines for long-tailed image recognition."""

import os

# Threads that wait for one another sleep, which is to be said before PyTorch is there: they would
# turn in a loop, and on a machine that does other things, too, hold up what they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
