"""Cases in worker processes, watched: whatever becomes of one, the others are run, and the clock is kept."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import ROOT
from .worker import SPOILED


def run_cases(part: str, names: Sequence[str], device: str, folder: Path, seconds: float,
              save: Callable[[dict[str, Any]], None], patience: float, before: Sequence[str] = (),
              settings: Mapping[str, str] | None = None) -> None:
    """Run cases of a part within ``seconds``, and ``save`` one result for every name.

    Args:
        part: the module that has them, of this package or by its full name.
        device: "cuda" or "cpu".
        folder: has the package (build.py); takes the log of the workers.
        patience: seconds for one case, the start of its process included; what takes longer is stopped, and the next
            is begun in a new process.
        before: a command to run the worker under.
        settings: environment variables for the worker.
    """
    end = time.monotonic() + seconds
    left = list(names)
    while left and time.monotonic() < end:
        done, why = _one_process(part, left, device, folder, end, save, before, patience, settings or {})
        left = left[done:]
        if why and left:
            save({"case": left.pop(0), "state": "error", "why": why})
    for name in left:
        save({"case": name, "state": "not run", "why": f"the {seconds:.0f} s of this part were over"})


def _one_process(part, names, device, folder, end, save, before, patience, settings) -> tuple[int, str]:
    """(cases that came back, why the next one did not or "")."""
    results = folder / f"{part}.jsonl"
    results.write_text("")
    command = [*before, sys.executable, "-m", f"{__package__}.worker", part, device, str(results), *names]
    done, last = 0, time.monotonic()
    with open(folder / f"{part}.log", "a") as log, open(results) as lines:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(folder) | settings, stdout=log,
                                   stderr=subprocess.STDOUT, start_new_session=True)
        try:
            while True:
                ended = _ended(process, 0.1)
                for line in iter(lines.readline, ""):
                    save(json.loads(line))
                    done, last = done + 1, time.monotonic()
                if ended:
                    break
                if time.monotonic() > min(end, last + patience):
                    late = f"stopped after {time.monotonic() - last:.0f} s"
                    return done, late + (", when the time of this part was over" if time.monotonic() > end else "")
        finally:
            _kill(process)
    if process.returncode == 0 or done == len(names):
        return done, ""
    if process.returncode == SPOILED:
        return done, ""
    return done, f"its process ended with status {process.returncode}: {_last_line(folder / f'{part}.log')}"


def environment(folder: Path) -> dict[str, str]:
    """The package of ``folder`` before any other; compiled kernels are kept there."""
    own = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(own), "TRITON_CACHE_DIR": str(folder / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "PYTHONUNBUFFERED": "1"}


def _ended(process: subprocess.Popen, seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _kill(process: subprocess.Popen) -> None:
    """The worker, and what it has started (compilers): they are a session of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
