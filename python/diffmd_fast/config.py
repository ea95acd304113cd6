"""What is installed, what was compiled, and what can run here."""

from __future__ import annotations

import platform
from typing import Any

import torch

from . import _C
from .backend import BACKENDS, current_backend, unavailable
from .ops import get_num_threads


def config() -> dict[str, Any]:
    """Versions, the build, SIMD levels, threads, and for each backend "available" or why it is not."""
    import mdtraj
    import numpy
    import safetensors

    build = _C.build_info()
    return {
        "versions": {"diffmd_fast": build["version"], "python": platform.python_version(),
                     "torch": torch.__version__, "numpy": numpy.__version__, "mdtraj": mdtraj.__version__,
                     "safetensors": safetensors.__version__},
        "build": {"compiler": build["compiler"], "openmp": build["openmp"],
                  "simd_compiled": list(build["simd_compiled"]), "cuda_compiler": build["cuda_compiler"]},
        "run": {"processor": platform.machine(), "simd_usable": list(build["simd_usable"]), "simd": build["simd"],
                "threads": get_num_threads(), "backend": current_backend()},
        "backends": {name: unavailable(name) or "available" for name in BACKENDS},
    }


def show_config() -> None:
    """Print :func:`config` in a few lines, for a look and for bug reports."""
    c = config()
    print("  ".join(f"{name} {version}" for name, version in c["versions"].items()))
    build, run = c["build"], c["run"]
    print(f"compiled   {build['compiler']}, OpenMP {'yes' if build['openmp'] else 'no'}, "
          f"SIMD {' '.join(build['simd_compiled'])}, CUDA {build['cuda_compiler']}")
    print(f"running    {run['processor']}, SIMD {run['simd']} (usable: {' '.join(run['simd_usable'])}), "
          f"{run['threads']} threads, backend {run['backend']}")
    for name, state in c["backends"].items():
        print(f"backend    {name:<10} {state}")
