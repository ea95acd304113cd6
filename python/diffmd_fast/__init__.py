"""Molecular dynamics from a diffusion model, at production speed.

A denoising step tied to the previous frame by a spring of stiffness k is one Euler-Maruyama step of overdamped
Langevin dynamics with time step 1/(2 D k) (arXiv 2511.17741), so a score network trained on shuffled snapshots
runs molecular dynamics.

>>> model = diffmd_fast.load_model("model.safetensors")
>>> spring = diffmd_fast.Spring.from_time_step(0.001, diffusion=0.002)
>>> trajectory = diffmd_fast.Sampler(model, spring, temperature=300, seed=1).run(positions, 10_000, save_every=100)
"""

import os as _os

# Threads that wait asleep.  OpenMP's default is to spin, and as soon as another process wants a core the threads at
# work wait for those that spin: a training step of butane took 2.6 s instead of 0.04 s on 2 cores with one busy
# neighbour.  Read when torch loads its OpenMP runtime, so it has no effect where torch is imported first.
_os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch as _torch  # noqa: E402, F401  before _C: both then share one OpenMP runtime

from . import io, models, ops, reference  # noqa: E402
from ._C import build_info as _build_info
from .backend import current_backend, use_backend
from .config import show_config
from .errors import InputError, NonFiniteError, UnavailableError
from .models import EnergyModel, load_model, save_model
from .ops import get_num_threads, set_num_threads
from .processes import Processes, torchrun_processes
from .sampling import Sampler, Spring

reference._bind(ops)
__version__ = _build_info()["version"]

__all__ = ["EnergyModel", "InputError", "NonFiniteError", "Processes", "Sampler", "Spring", "UnavailableError",
           "__version__", "current_backend", "get_num_threads", "io", "load_model", "models", "ops", "reference",
           "save_model", "set_num_threads", "show_config", "torchrun_processes", "use_backend"]
