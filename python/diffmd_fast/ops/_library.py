"""The one torch library that every operator of the package is registered in (``torch.ops.diffmd_fast.*``)."""

from __future__ import annotations

import torch

# torch is imported before the native module on purpose: the module then shares torch's OpenMP runtime instead of
# bringing a second pool of threads.
from .. import _C
from ..backend import current_backend, triton_runs
from ..errors import check_integer, require

LIBRARY = torch.library.Library("diffmd_fast", "DEF")
NATIVE_DTYPES = {torch.float32: "float32", torch.float64: "float64"}
_threads: int | None = None


def set_num_threads(n: int | None) -> None:
    """Threads of the native kernels; None (the default) follows ``torch.get_num_threads()``."""
    global _threads
    _threads = None if n is None else check_integer(n, "n_threads", minimum=1, maximum=1024)


def get_num_threads() -> int:
    """Threads that the native kernels use."""
    return torch.get_num_threads() if _threads is None else _threads


def native(name: str, dtype: torch.dtype):
    """The native function ``_C.<name>_<dtype>``."""
    return getattr(_C, f"{name}_{NATIVE_DTYPES[dtype]}")


def define(schema: str, cpu, fake, other=None, triton=None) -> None:
    """Register an operator: its schema, CPU kernel, fake (shapes only) kernel, and the kernels of other devices.

    ``other``, where given, is the plain PyTorch reference in the schema's own signature; it serves every device
    without a kernel of its own.  ``triton`` serves CUDA tensors in its place where Triton runs, and CPU tensors in
    Triton's interpreter when the triton backend was chosen.
    """
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, cpu if triton is None else cpu_kernel(cpu, triton), "CPU")
    for key, kernel in (("CUDA", other if triton is None else cuda_kernel(name, triton, other)), ("MPS", other),
                        ("XPU", other)):
        if kernel is not None:
            LIBRARY.impl(name, kernel, key)
    torch.library.register_fake(f"diffmd_fast::{name}", fake, lib=LIBRARY)


def cpu_kernel(cpu, triton):
    """What runs on CPU tensors."""

    def kernel(*arguments):
        return (triton if current_backend() == "triton" else cpu)(*arguments)

    return kernel


def cuda_kernel(name: str, triton, other):
    """What runs on CUDA tensors; ``other`` None: nothing but Triton can."""

    def kernel(*arguments):
        if triton_runs(name, fallback=other is not None):
            return triton(*arguments)
        return other(*arguments)

    return kernel


def register_autograd(name: str, backward, setup_context=None) -> None:
    torch.library.register_autograd(f"diffmd_fast::{name}", backward, setup_context=setup_context, lib=LIBRARY)


def refuse_gradient(ctx, operation: str, inputs: dict[int, str]) -> None:
    """Refuse inputs, by number and name, whose gradient would silently be missing."""
    for i, name in inputs.items():
        require(not ctx.needs_input_grad[i], name, f"a tensor without gradient ({operation} is not differentiable with "
                f"respect to {name})", "requires_grad=True")
