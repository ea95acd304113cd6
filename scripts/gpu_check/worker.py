"""Cases in a process of their own.  Results go to a file, one JSON line each, as they come.

    python3 -m scripts.gpu_check.worker correctness cuda results.jsonl NAME [NAME ...]
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import traceback
from typing import Any

from .cases import Case, Skipped, Wrong

SPOILED = 3  # exit status: the device cannot be used any more in this process


def work(part: str, device: str, results: str, names: list[str]) -> int:
    """Run cases in order; the exit status is SPOILED where the rest has to be run by another process."""
    cases = {case.name: case for case in cases_of(part)}
    with open(results, "a") as file:
        for name in names:
            file.write(json.dumps({"case": name, **outcome(cases[name], device)}) + "\n")
            file.flush()
            if not usable(device):
                return SPOILED
    return 0


def cases_of(part: str) -> list[Case]:
    # A finder of an editable install would win over PYTHONPATH, and check the package of another tree.
    sys.meta_path[:] = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("_editable_")]
    return importlib.import_module(part if "." in part else f".{part}", __package__).CASES


def names(part: str, sanitized: bool) -> list[str]:
    return [case.name for case in cases_of(part) if case.sanitized or not sanitized]


def outcome(case: Case, device: str) -> dict[str, Any]:
    """Its state (done, wrong, error or skipped), what it returned or why not, and how long it took."""
    started = time.monotonic()
    try:
        result: dict[str, Any] = {"state": "done", "result": case.run(device)}
    except Skipped as reason:
        result = {"state": "skipped", "why": str(reason)}
    except Wrong as reason:
        result = {"state": "wrong", "why": str(reason)}
    except Exception as error:  # whatever it is, the other cases go on
        traceback.print_exc()
        result = {"state": "error", "why": f"{type(error).__name__}: {error}"[:2000]}
    return result | {"seconds": round(time.monotonic() - started, 2)}


def usable(device: str) -> bool:
    """False once a kernel has failed: CUDA then refuses every further call of the process."""
    if device != "cuda":
        return True
    import torch

    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(work(*sys.argv[1:4], sys.argv[4:]))
