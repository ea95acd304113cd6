"""One clear error per mistake.

Every public function checks its arguments before it computes or overwrites anything, and raises
:class:`InputError` with one line: the argument's name, what was expected, what came.  The command line
prints that line and exits with 2.
"""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Iterator
from typing import Any


class InputError(ValueError):
    """A bad argument.  The message begins with the argument's name and is one line."""


class UnavailableError(RuntimeError):
    """A backend or library that this machine or this build does not have; the message says what to do."""


class NonFiniteError(ArithmeticError):
    """NaN or infinity where it arose; the message names the replica and the step."""


def require(condition: bool, argument: str, expected: str, got: Any) -> None:
    """Raise :class:`InputError` ``"argument: expected ..., got ..."`` unless ``condition`` holds."""
    if not condition:
        raise InputError(f"{argument}: expected {expected}, got {_one_line(got)}")


@contextlib.contextmanager
def called(inner_name: str, name: str) -> Iterator[None]:
    """Errors about ``inner_name`` become errors about ``name``, which is what the caller knows the argument by."""
    try:
        yield
    except InputError as error:
        argument, _, rest = str(error).partition(":")
        if argument != inner_name:
            raise
        raise InputError(f"{name}:{rest}") from error


def _one_line(value: Any) -> str:
    """``str(value)`` without line breaks, which tensors and arrays have."""
    return " ".join(line.strip() for line in str(value).splitlines())


def check_number(value: Any, argument: str, *, minimum: float | None = None, above: float | None = None,
                 unit: str = "") -> float:
    """A finite float, at least ``minimum`` or strictly above ``above``; returned as ``float``."""
    suffix = f" {unit}" if unit else ""
    bound = "a finite number"
    if above is not None:
        bound = f"a finite number above {above:g}{suffix}"
    elif minimum is not None:
        bound = f"a finite number of at least {minimum:g}{suffix}"
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last: a tensor of several elements
        raise InputError(f"{argument}: expected {bound}, got {_one_line(repr(value))}") from None
    ok = math.isfinite(number)
    ok = ok and (above is None or number > above) and (minimum is None or number >= minimum)
    require(ok, argument, bound, f"{number:g}{suffix}")
    return number


def check_integer(value: Any, argument: str, *, minimum: int | None = None, maximum: int | None = None) -> int:
    """An integer (bool excluded) within the bounds given, returned as ``int``."""
    bound = "an integer"
    if minimum is not None:
        bound += f" of at least {minimum}"
    if maximum is not None:
        bound += f"{' and' if minimum is not None else ' of'} at most {maximum}"
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # arrays and tensors of floats have __index__ and refuse it
        number = None
    if number is None:
        raise InputError(f"{argument}: expected {bound}, got {_one_line(repr(value))}")
    ok = (minimum is None or number >= minimum) and (maximum is None or number <= maximum)
    require(ok, argument, bound, number)
    return number


def check_tensor(value: Any, argument: str, shape: tuple, *, dtypes: tuple | None = None, like: Any = None) -> None:
    """Check a torch tensor's shape, dtype and device.

    ``shape`` holds an int for a fixed size, a str that names a free one (``("replicas", "atoms", 3)``).
    ``dtypes`` are the dtypes allowed (default float32 and float64); ``like`` is ``(name, tensor)`` whose
    dtype and device must be shared.
    """
    import torch

    allowed = dtypes or (torch.float32, torch.float64)
    fits = isinstance(value, torch.Tensor) and value.dim() == len(shape) and all(
        [isinstance(want, str) or want == have for want, have in zip(shape, value.shape)])
    if fits and value.dtype in allowed and (like is None or (
            value.device == like[1].device and (dtypes is not None or value.dtype == like[1].dtype))):
        return  # before any message is put together: operators are called often
    wanted = "[" + ", ".join(str(s) for s in shape) + "]"
    if not isinstance(value, torch.Tensor):
        raise InputError(f"{argument}: expected a torch.Tensor of shape {wanted}, got {type(value).__name__}")
    require(fits, argument, f"shape {wanted}", f"shape {list(value.shape)}")
    names = " or ".join(str(d).removeprefix("torch.") for d in allowed)
    require(value.dtype in allowed, argument, f"dtype {names}", f"dtype {str(value.dtype).removeprefix('torch.')}")
    if like is not None:
        name, other = like
        require(value.dtype == other.dtype or dtypes is not None, argument, f"the dtype of {name} ({other.dtype})",
                value.dtype)
        require(value.device == other.device, argument, f"the device of {name} ({other.device})", value.device)


def check_folder(folder: Any, argument: str) -> None:
    """Refuse a folder that is missing or in which no file can be made; asked before a long run."""
    import tempfile
    from pathlib import Path

    require(Path(folder).is_dir(), argument, "a file in an existing folder", f"{str(folder)!r}, which is none")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{argument}: expected a folder that can be written to, got {str(folder)!r} "
                         f"({error.strerror})") from None


def check_new_folder(path: Any, argument: str) -> Any:
    """A folder that exists or can be made, as a Path; asked before a long run, nothing is made."""
    from pathlib import Path

    target = Path(path)
    require(not target.exists() or target.is_dir(), argument, "a folder", f"the file {target}")
    check_folder(next(folder for folder in (target, *target.parents) if folder.exists()), argument)
    return target


def check_finite(value: Any, argument: str) -> None:
    """Refuse a tensor with a NaN or an infinity, naming where the first one is."""
    import torch

    if not bool(torch.isfinite(value).all()):
        where = torch.nonzero(~torch.isfinite(value))[0].tolist()
        raise InputError(f"{argument}: expected finite values, got {value[tuple(where)].item()} at index {where}")
