"""What this python and this card are; a process of its own says it, since asking a card starts it up.

    python3 -m scripts.gpu_check.machine cuda       one line of JSON; {"missing": ...} where nothing can be checked
"""

from __future__ import annotations

import json
import os
import platform
import sys
from typing import Any


def facts(device: str) -> dict[str, Any]:
    python = sys.executable
    try:
        import torch
    except Exception as error:  # a broken install can raise anything
        return {"missing": f"{python} cannot import torch ({error}); name the python that can with GPU_PYTHON"}
    found = {"device": device, "python": platform.python_version(), "torch": torch.__version__,
             "processors": os.cpu_count()}
    if device == "cpu":
        return found | {"card": f"none, on purpose: the checks ran on the CPU ({platform.machine()})"}
    if torch.version.cuda is None:
        return {"missing": f"torch {torch.__version__} of {python} is built without CUDA; name one whose torch has "
                "it with GPU_PYTHON"}
    if not torch.cuda.is_available():
        return {"missing": f"torch {torch.__version__} of {python} sees no CUDA device; is there a card, and does "
                "nvidia-smi show it?"}
    try:
        import triton
    except ImportError as error:
        return {"missing": f"{python} cannot import Triton ({error}), which the operators on a GPU are written in"}
    card = torch.cuda.get_device_properties(0)
    return found | {"triton": triton.__version__, "CUDA of torch": torch.version.cuda, "card": card.name,
                    "architecture": f"{card.major}{card.minor}", "multiprocessors": card.multi_processor_count,
                    "memory, GiB": round(card.total_memory / 2**30, 1), "L2, MB": round(card.L2_cache_size / 1e6, 1)}


if __name__ == "__main__":
    print(json.dumps(facts(sys.argv[1])))
