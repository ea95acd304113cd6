"""One case of a fuzz target: everything drawn from its name and seed, and the judgement of what came of it.

A target is a function of one :class:`Case`.  It draws valid arguments, may spoil some of them, calls through
:meth:`Case.attempt`, and checks what comes back with :meth:`Case.check` and :meth:`Case.check_close`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffmd_fast import InputError, UnavailableError

# MemoryError: a size that no machine has is refused by the allocator, not by us.  RuntimeError is torch's own word
# for arguments that do not fit an operator's schema, and covers UnavailableError and NotImplementedError.
REFUSALS = (InputError, UnavailableError, RuntimeError, MemoryError)
ONE_LINE = re.compile(r"[\w.\[\]]+: [^\n]+")
SPECIAL = (float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 5e-324, 1e-40, 1e-300, 1e10, -1e20, 1e38, -3e38, 1e300)
NUMBERS = (*SPECIAL, -1.0, 0.5, 2.0**31, 1e-9, True, None, "many", 10**400)
INTEGERS = (0, 1, -1, 2, 7, 2**31 - 1, 2**31, -(2**31), 2**32, 2**56, 2**62, 2**63 - 1, -(2**63), 2**64, 0.5, None)
INDICES = (-1, 0, 1, 2, 3, 100, 2**31 - 1, -(2**31), 2**40, 2**63 - 1, -(2**63))
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8,
          torch.bool, torch.complex64)
HUGE = 2**45  # elements: more than any allocator gives, so that no case fills the memory of the machine
JSON_VALUES = (None, True, False, 0, 1, -1, 0.5, 2**31, 2**63, -(2**64), 1e308, float("nan"), float("inf"), "", "x",
               "é" * 300, [], {}, [0], [[]], [None], {"a": 1}, [[0, 1]], [[0, 0]], [[0, 1, 2, 3]], [[0, 1, 2, 10**6]])
LOST_DIGITS = {torch.float32: 1e-3, torch.float64: 1e-8}  # of the largest element, where many terms cancel


class Failure(Exception):
    """The package did something that it must not do."""


class Case:
    """Draws for ``target`` under ``seed``: the same in every process and on every machine."""

    def __init__(self, target: str, seed: int):
        self.target, self.seed = target, seed
        self.random = random.Random(f"{target}:{seed}")
        self.generator = torch.Generator().manual_seed(self.random.getrandbits(62))
        self.ordinary = True  # values a physicist would have; else NaN, infinities, denormals, huge ones
        self.spoiled: list[str] = []  # what was done to valid arguments; empty: they must be served
        self.refused = False

    # ---- draws ---------------------------------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def choice(self, values):
        return self.random.choice(values)

    def size(self, most: int = 12, least: int = 0) -> int:
        """Mostly small, with the ends of the range more often than their share."""
        if self.chance(0.15):
            return least
        return self.random.randint(least, most) if self.chance(0.7) else min(most, least + self.random.randint(0, 3))

    def dtype(self) -> torch.dtype:
        return self.choice((torch.float32, torch.float64))

    def values(self, shape, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        """Normal numbers; where the case is not ordinary a few, or all, are special ones."""
        x = scale * torch.randn(shape, generator=self.generator, dtype=torch.float64)
        if not self.ordinary and x.numel():
            if self.chance(0.1):
                x = torch.full_like(x, self.choice(SPECIAL))
            flat = x.view(-1)
            for _ in range(self.random.randint(0, 3)):
                flat[self.random.randrange(len(flat))] = self.choice(SPECIAL)
            if self.chance(0.2):
                x = x * self.choice((1e-310, 1e-42, 1e5, 1e12, 1e30))
        return x.to(dtype)

    def positions(self, n_replicas: int, n_atoms: int, dtype: torch.dtype, scale: float = 0.3) -> Tensor:
        """[replicas, atoms, 3] nm, at times with atoms in one place, on one line, or far apart."""
        x = self.values((n_replicas, n_atoms, 3), dtype, scale)
        if n_atoms > 1 and self.chance(0.1):
            x[:, 0] = x[:, -1]
        if self.chance(0.05):
            x[..., 1:] = 0
        if not self.ordinary and self.chance(0.2):
            x = x * 10.0 ** self.random.randint(1, 30)
        return x

    def permutation(self, n: int) -> list[int]:
        return self.random.sample(range(n), n)

    def laid_out(self, x: Tensor) -> Tensor:
        """The same values under other strides, in a part of a larger storage, or lazily negated."""
        way = self.random.randrange(6)
        if way == 0 and x.dim() > 1:
            return x.transpose(0, -1).contiguous().transpose(0, -1)
        if way == 1:
            wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1] + 1, dtype=x.dtype) if x.dim() else x
            part = wide[..., 1::2] if x.dim() else x
            return part.copy_(x)
        if way == 2:
            longer = torch.zeros(x.numel() + 5, dtype=x.dtype)
            return longer[3:3 + x.numel()].view(x.shape).copy_(x)
        if way == 3 and x.dtype in (torch.float32, torch.float64):
            return torch.complex(torch.zeros_like(x), -x).conj().imag
        return x

    # ---- spoiling ------------------------------------------------------------------------------------------

    def spoil(self, arguments: dict[str, Any], probability: float = 0.5, raw: bool = False) -> dict[str, Any]:
        """``arguments`` as they are, laid out differently, or with a few replaced by something wrong.

        ``raw``: for torch.ops.*, where torch lets None through for any tensor; the AttributeError that follows is
        what its own operators written in Python raise, too.
        """
        arguments = {k: self.laid_out(v) if isinstance(v, Tensor) else v for k, v in arguments.items()}
        for name in self.random.sample(list(arguments), min(3, len(arguments))):
            if not self.chance(probability):
                break
            arguments[name], how = self._spoiled(arguments[name], raw)
            self.spoiled.append(f"{name}: {how}")
        return arguments

    def _spoiled(self, value: Any, raw: bool) -> tuple[Any, str]:
        if isinstance(value, Tensor):
            return self._spoiled_tensor(value, raw)
        if isinstance(value, bool):
            return not value, str(not value)
        if isinstance(value, int):
            new = self.choice(INTEGERS)
        elif isinstance(value, str):
            new = self.choice(("", "x" * 50, "auto", None, 3))
        else:
            new = self.choice(NUMBERS)
        return new, repr(new)[:60]

    def _spoiled_tensor(self, x: Tensor, raw: bool) -> tuple[Any, str]:
        whole = not (x.dtype.is_floating_point or x.dtype.is_complex)
        ways = ["dtype", "fewer axes", "more axes", "longer", "shorter", "empty", "swapped", "huge", "nothing", "list",
                "huge and empty", "gradient"] + 12 * ["index"] * whole + 3 * ["special"] * (not whole)
        way = self.choice(ways)
        axis = self.random.randrange(x.dim()) if x.dim() else 0
        if way == "dtype":
            dtype = self.choice(DTYPES)
            return x.to(dtype), str(dtype)
        if way in ("nothing", "list"):
            return (None, "None") if way == "nothing" and not raw else ([1.0, 2.0], "a list")
        if way == "more axes" or x.dim() == 0:
            return x.unsqueeze(axis), way
        if way == "fewer axes":
            return x.flatten(0, 1) if x.dim() > 1 else x.sum(), way
        if way == "swapped" and x.dim() > 1:
            return x.transpose(axis, axis - 1), way
        if way in ("longer", "shorter", "empty", "swapped"):
            n = {"longer": x.shape[axis] + 1, "shorter": max(0, x.shape[axis] - 1)}.get(way, 0)
            return torch.cat([x, x.new_zeros([*x.shape[:axis], 1, *x.shape[axis + 1:]])], axis).narrow(axis, 0, n), way
        if way == "huge":
            return x.new_zeros(()).expand([HUGE if i == axis else min(n or 1, 64) for i, n in enumerate(x.shape)]), way
        if way == "huge and empty":
            shape = [0 if i == axis else min(n, 3) for i, n in enumerate(x.shape)]
            shape[axis - 1] = self.choice((HUGE, 2**60)) if x.dim() > 1 else 0
            return x.new_zeros(shape), f"shape {shape}"
        if way == "gradient":
            return (x.clone().requires_grad_(), way) if not whole else (x, "nothing")
        x = x.clone(memory_format=torch.contiguous_format)
        if x.numel():
            at, new = self.random.randrange(x.numel()), torch.tensor(self.choice(SPECIAL), dtype=torch.float64)
            if whole:  # an index around those that are there, or far off; wrapped into the range of the dtype
                near = int(x.max()) + self.random.randint(-1, 2)
                new = torch.tensor(self.choice((near, *INDICES))).to(x.dtype)
            x.view(-1)[at] = torch.as_tensor(new).to(x.dtype)
            way = f"{way} {float(new):g} at {at}"
        return x, way

    def spoil_json(self, value: Any, probability: float = 0.9) -> Any:
        """A copy of lists, dicts and numbers with one node replaced by something else."""
        if not self.chance(probability):
            return value
        path, node, parent = [], value, None
        while isinstance(node, (dict, list)) and node and (parent is None or self.chance(0.85)):
            parent = node
            key = self.choice(list(node)) if isinstance(node, dict) else self.random.randrange(len(node))
            path, node = [*path, key], node[key]
        new = self.choice(JSON_VALUES)
        if isinstance(node, (int, float)) and not isinstance(node, bool) and self.chance(0.5):
            new = self.choice((node + 1, node - 1, -node, float(node), str(node), [node]))
        self.spoiled.append(f"{'.'.join(map(str, path))} = {new!r}")
        return _replaced(value, path, new)

    def spoil_bytes(self, data: bytes) -> bytes:
        """``data`` cut short, lengthened, or with bits, bytes or a stretch of it changed; maybe at the front."""
        spoiled, way = bytearray(data), self.choice(("bits", "byte", "cut", "longer", "zeros", "left out", "swapped"))
        most = len(data) if self.chance(0.5) else min(len(data), 512)
        at = self.random.randrange(most)
        length = min(self.random.choice((1, 4, 8, 64, 500)), len(data) - at)
        if way == "bits":
            for _ in range(self.random.randint(1, 3)):
                spoiled[self.random.randrange(most)] ^= 1 << self.random.randrange(8)
        elif way == "byte":
            spoiled[at] = self.choice((0, 1, 0x7F, 0x80, 0xFF, ord("9"), ord('"')))
        elif way == "cut":
            del spoiled[at:]
        elif way == "longer":
            spoiled[at:at] = self.random.randbytes(length)
        elif way == "zeros":
            spoiled[at:at + length] = bytes(length)
        elif way == "left out":
            del spoiled[at:at + length]
        else:
            spoiled[at:at + length] = spoiled[at:at + length][::-1]
        self.spoiled.append(f"bytes: {way} at {at}")
        return bytes(spoiled)

    # ---- judgement -----------------------------------------------------------------------------------------

    def attempt(self, call: Callable[[], Any]) -> Any:
        """The result of ``call``, or None where it was refused as it may be; valid arguments may not be."""
        try:
            return call()
        except REFUSALS as error:
            if isinstance(error, InputError):
                self.check(ONE_LINE.fullmatch(str(error)), f"a message of one line that names the argument: {error!r}")
            if not self.spoiled and self.ordinary:
                raise Failure(f"valid arguments were refused: {type(error).__name__}: {error}") from error
            self.refused = True
            return None

    def check(self, good: Any, expected: str) -> None:
        if not good:
            raise Failure(f"expected {expected}")

    def check_shape(self, x: Tensor, shape, dtype: torch.dtype, what: str) -> None:
        self.check(isinstance(x, Tensor) and tuple(x.shape) == tuple(shape) and x.dtype == dtype,
                   f"{what} {list(shape)} {dtype}, got {list(x.shape)} {x.dtype}")

    def check_close(self, got: Tensor, reference: Tensor, truth: Tensor, what: str) -> None:
        """The correctness rule with room for luck, since a fuzz run makes thousands of small comparisons.

        ``reference`` is the plain PyTorch result in the dtype of ``got``, ``truth`` in float64.  tests/ops holds the
        rule itself; what a fuzz case is to find is a wrong row, not a lost digit.
        """
        if not truth.numel():
            return
        scale = truth.abs().max().item() or 1.0
        error = (got.double() - truth).abs().max().item()
        allowed = 10 * (reference.double() - truth).abs().max().item() + LOST_DIGITS[got.dtype] * scale
        self.check(error <= allowed, f"{what} within {allowed:.3e} of the reference, got {error:.3e}")


def _replaced(value: Any, path: list, new: Any) -> Any:
    if not path:
        return new
    key, *rest = path
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = _replaced(value[key], rest, new)
    return copy
