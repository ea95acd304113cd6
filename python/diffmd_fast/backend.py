"""Which implementation runs: one switch for operators, models and sampler alike."""

from __future__ import annotations

import contextvars
import functools
import warnings

import torch  # before _C: both then share one OpenMP runtime
from torch.autograd import forward_ad

from . import _C
from .errors import UnavailableError, require

BACKENDS = ("auto", "reference", "native", "triton", "cuda")
_current: contextvars.ContextVar[str] = contextvars.ContextVar("diffmd_fast_backend", default="auto")
_said: set[str] = set()


class use_backend:
    """Choose the backend: ``use_backend("reference")`` for good, ``with use_backend("native"): ...`` for a block.
    Either holds in the calling thread (the context of :mod:`contextvars`); other threads start with ``"auto"``.

    ``"auto"`` (default): native code on the CPU, the fastest kernel there is on other devices, and the plain
    PyTorch reference where there is none, which is said once.  ``"reference"``: plain PyTorch everywhere.
    ``"native"``: the compiled CPU code.  ``"triton"``: GPU kernels; with ``TRITON_INTERPRET=1`` in the environment
    from the start it runs on CPU tensors too, in Triton's interpreter (slow, for tests).  ``"cuda"``: refused, since
    no operator has a CUDA kernel; the sampler's loop has one, which ``"auto"`` chooses.

    Raises:
        InputError: unknown name.
        UnavailableError: the backend cannot run here; the message says why.
    """

    def __init__(self, name: str):
        require(name in BACKENDS, "backend", "one of " + ", ".join(BACKENDS), repr(name))
        reason = unavailable(name)
        if reason is not None:
            raise UnavailableError(f"backend: {name!r} cannot run here: {reason}")
        self._token = _current.set(name)

    def __enter__(self) -> use_backend:
        return self

    def __exit__(self, *exc) -> None:
        _current.reset(self._token)


def current_backend() -> str:
    """The name in force: "auto" unless :class:`use_backend` chose another.

    A function compiled by torch keeps the backend that was in force when it was compiled.
    """
    return _current.get()


# torch.compile cannot read a context variable. This is torch.compiler.assume_constant_result without its import of
# torch._dynamo, which takes a second and brings Triton along.
current_backend._dynamo_marked_constant = True  # type: ignore[attr-defined]


def unavailable(name: str) -> str | None:
    """Why backend ``name`` cannot run on this machine, or None when it can."""
    if name == "triton":
        return _no_triton()
    if name == "cuda":
        return _no_cuda()
    return None  # the reference is plain PyTorch, and the package does not import without its native module


@functools.cache
def _no_triton() -> str | None:
    missing = None
    try:
        from .kernels.triton import INTERPRETED
    except ImportError as error:
        missing = f"Triton cannot be imported ({error}); CUDA builds of torch for Linux bring it"
    else:
        if INTERPRETED:  # needs no GPU
            return None
    if not (torch.version.cuda or torch.version.hip):
        return f"torch {torch.__version__} is a CPU build; install a CUDA build of torch, see https://pytorch.org"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device; check the NVIDIA driver with nvidia-smi"
    return missing


@functools.cache
def _no_cuda() -> str:
    probe = _C.cuda_probe()
    return ("no operator has a CUDA kernel; use \"auto\" or \"triton\" for CUDA tensors. The sampler's loop has one, "
            f"which \"auto\" chooses where it can run (here: {probe or 'it can'})")


def say_once(key: str, message: str) -> None:
    """Warn with ``message`` the first time ``key`` comes up in this process: a fallback says why it was taken."""
    if key not in _said:
        _said.add(key)
        warnings.warn(message, stacklevel=3)


def in_transform() -> bool:
    """True inside torch.func's transforms (grad, vmap, jvp, ...) and in forward-mode differentiation.

    Registered operators have no rule for these: torch would drop a tangent without a word, so a directional
    derivative would come out as zero.
    """
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def run_reference(device_type: str, operation: str) -> bool:
    """True when ``operation`` on tensors of ``device_type`` is to run as plain PyTorch."""
    name = current_backend()
    if name == "reference":
        return True
    if in_transform():
        say_once(f"{operation}:transform", f"{operation}: no kernel for torch.func or forward-mode derivatives; "
                 "running the plain PyTorch reference")
        return True
    if name == "triton":
        allowed = ("cuda", "cpu", "meta") if _in_interpreter() else ("cuda", "meta")
        require(device_type in allowed, "backend", f"CUDA tensors for {operation} on the triton backend (or "
                "TRITON_INTERPRET=1 in the environment)", f"{device_type} tensors")
        return False
    if device_type in ("cpu", "meta"):
        return False
    require(name != "native", "backend", f"CPU tensors for {operation} on the native backend", f"{device_type} tensors")
    if device_type == "cuda":
        return False  # the operator itself asks triton_runs, out of sight of torch.compile
    say_once(f"{operation}:{device_type}",
             f"{operation}: no {device_type} kernel in this version; running the plain PyTorch reference")
    return True


def triton_runs(operation: str, fallback: bool = True) -> bool:
    """True when CUDA tensors can go to ``operation``'s Triton kernel; otherwise says once why they cannot.

    Raises:
        UnavailableError: they cannot, and there is no ``fallback`` either.
    """
    reason = _no_triton()
    if reason is not None:
        if not fallback:
            raise UnavailableError(f"{operation}: no kernel for CUDA tensors: {reason}")
        say_once(f"{operation}:triton", f"{operation}: {reason}; running the plain PyTorch reference")
    return reason is None


def _in_interpreter() -> bool:
    from .kernels.triton import INTERPRETED

    return INTERPRETED
