"""Molecular dynamics from a diffusion model, at production speed.

A denoising step tied to the previous frame by a spring of stiffness k is one Euler-Maruyama step of overdamped
Langevin dynamics with time step 1/(2 D k) (arXiv 2511.17741), so a score network trained on shuffled snapshots
runs molecular dynamics.
"""

import torch as _torch  # noqa: F401  before _C: both then share one OpenMP runtime

from . import ops, reference
from ._C import build_info as _build_info
from .backend import current_backend, use_backend
from .errors import InputError, NonFiniteError, UnavailableError
from .ops import get_num_threads, set_num_threads

reference._bind(ops)
__version__ = _build_info()["version"]

__all__ = ["InputError", "NonFiniteError", "UnavailableError", "__version__", "current_backend", "get_num_threads",
           "ops", "reference", "set_num_threads", "use_backend"]
