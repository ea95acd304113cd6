"""Which implementation runs: one switch for operators, models and sampler alike."""

from __future__ import annotations

import contextvars
import warnings

from .errors import UnavailableError, require

BACKENDS = ("auto", "reference", "native", "triton", "cuda")
_current: contextvars.ContextVar[str] = contextvars.ContextVar("diffmd_fast_backend", default="auto")
_said: set[str] = set()


class use_backend:
    """Choose the backend: ``use_backend("reference")`` for good, ``with use_backend("native"): ...`` for a block.

    ``"auto"`` (default): native code on the CPU, the fastest kernel there is on other devices, and the plain
    PyTorch reference where there is none, which is said once.  ``"reference"``: plain PyTorch everywhere.
    ``"native"``: the compiled CPU code.  ``"triton"``, ``"cuda"``: GPU kernels.

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
    """The name in force: "auto" unless :class:`use_backend` chose another."""
    return _current.get()


def unavailable(name: str) -> str | None:
    """Why backend ``name`` cannot run on this machine, or None when it can."""
    if name in ("auto", "reference", "native"):
        return None  # the package does not import without its native module
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        return ("torch sees no CUDA device" if built else
                f"torch {torch.__version__} is a CPU build; install a CUDA build of torch")
    return f"this version has no {name} kernels yet; CUDA tensors run through the reference"


def say_once(key: str, message: str) -> None:
    """Warn with ``message`` the first time ``key`` comes up in this process: a fallback says why it was taken."""
    if key not in _said:
        _said.add(key)
        warnings.warn(message, stacklevel=3)


def run_reference(device_type: str, operation: str) -> bool:
    """True when ``operation`` on tensors of ``device_type`` is to run as plain PyTorch."""
    name = current_backend()
    if name == "reference":
        return True
    if device_type == "cpu":
        require(name in ("auto", "native"), "backend", f"\"auto\", \"native\" or \"reference\" for {operation} on CPU "
                "tensors", repr(name))
        return False
    if device_type == "meta":
        return False
    require(name != "native", "backend", f"CPU tensors for {operation} on the native backend", f"{device_type} tensors")
    say_once(f"{operation}:{device_type}",
             f"{operation}: no {device_type} kernel in this version; running the plain PyTorch reference")
    return True
