"""The small cases of correctness.py once more under compute-sanitizer: out-of-bounds accesses, and races."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .run import run_cases

TOOLS = ("memcheck", "racecheck")
OPTIONS = {"memcheck": ["--report-api-errors", "no"],  # torch asks the driver for what it may not have
           "racecheck": []}


def find() -> str | None:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [f"{home}/{folder}" for home in homes if home for folder in ("bin", "compute-sanitizer")]
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=os.pathsep.join(places))


def sanitize(names: Sequence[str], device: str, folder: Path, seconds: float,
             save: Callable[[dict[str, Any]], None]) -> None:
    """``save`` one result for each tool: done where it found nothing, wrong where it did, skipped where it is not."""
    binary = find()
    for i, tool in enumerate(TOOLS):
        if device == "cpu" or binary is None:
            save({"case": tool, "state": "skipped", "why": "compute-sanitizer is not on this machine"
                  if device != "cpu" else "it looks at kernels of a GPU"})
            continue
        for old in folder.glob(f"{tool}.*.txt"):
            old.unlink()
        command = [binary, "--tool", tool, "--log-file", str(folder / f"{tool}.%p.txt"), *OPTIONS[tool]]
        cases: list[dict[str, Any]] = []
        # Every tensor in an allocation of its own: torch's pool would hide an access beyond its end.
        run_cases("correctness", names, device, folder, seconds / (len(TOOLS) - i), cases.append, seconds,
                  command, settings={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
        save({"case": tool, **verdict([path.read_text(errors="replace") for path in folder.glob(f"{tool}.*.txt")],
                                      cases)})


def verdict(logs: Sequence[str], cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """From the closing lines of the tool, "ERROR SUMMARY: 0 errors" or "RACECHECK SUMMARY: 0 hazards displayed ..."."""
    summaries = [re.search(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) .*", log) for log in logs]
    ran = [case["case"] for case in cases if case["state"] != "not run"]
    broken = [f"{case['case']}: {case['why']}" for case in cases if case["state"] in ("wrong", "error")]
    bad = [summary[0] for summary in summaries if summary and int(summary[1])]
    if bad:
        said = next(log for log in logs if bad[0] in log)
        return {"state": "wrong", "why": f"{bad[0]}; first: " + " ".join(said.split("\n=========")[1:4])[:600]}
    if broken:
        return {"state": "error", "why": "; ".join(broken)[:1000]}
    if not summaries or not all(summaries) or not ran:
        return {"state": "not run", "why": f"no closing line of the tool after {len(ran)} of {len(cases)} cases"}
    if len(ran) < len(cases):
        return {"state": "not run", "why": f"{len(ran)} of {len(cases)} cases before the time was over, those clean"}
    return {"state": "done", "result": {"cases": ran}}
