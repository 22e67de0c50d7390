"""Peak memory of a side of a benchmark, each in a process of its own.

A side is run by the benchmark's own file with ``--memory SIDE``; its last line is what `report_peak` prints. Run before
the caller has loaded anything: pages that two processes share cannot be given back.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path


def peak_gb() -> float:
    """Most memory this process has held, in GiB, files mapped into it included."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        # getrusage would count what the parent held before this program began.
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**20
    except (OSError, StopIteration):
        unit = 2**30 if sys.platform == "darwin" else 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def report_peak() -> None:
    """Prints the peak as the last line."""
    print(json.dumps({"peak_memory_gb": round(peak_gb(), 3)}), flush=True)


def peaks_of(file: str, sides: Iterable[str], arguments: Sequence[str]) -> dict[str, float]:
    """Peak memory by side."""
    found = {}
    for side in sides:
        command = [sys.executable, file, *arguments, "--memory", side]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found[side] = float(json.loads(output.splitlines()[-1])["peak_memory_gb"])
    return found
