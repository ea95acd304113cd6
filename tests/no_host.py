"""What a captured CUDA graph must not do, made an error without a GPU."""

from __future__ import annotations

from types import FunctionType, MethodType

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# The result, or its size, is only known once the host has read what the device computed; or values come from the host.
WAITS = {aten._local_scalar_dense, aten.nonzero, aten.equal, aten.masked_select, aten._unique2, aten.unique_dim,
         aten.unique_consecutive, aten.bincount, aten.lift_fresh, aten.is_nonzero}


class HostWaited(RuntimeError):
    """The message begins with the operator."""


class NoHost(TorchDispatchMode):
    """Raises where the host would wait for the device, or values would travel between them.

    ``inside``: dispatch key of tensors whose kernels of this package are looked into as well: those written in Python.
    """

    def __init__(self, inside: torch._C.DispatchKey | None = None):
        super().__init__()
        self.inside, self.seen = inside, set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        self.seen.add(str(function))
        if function.overloadpacket in WAITS or function is aten.repeat_interleave.Tensor and not options:
            raise HostWaited(f"{function}")
        if function in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default) and any(
                index is not None and index.dtype in (torch.bool, torch.uint8) for index in arguments[1]):
            raise HostWaited(f"{function} by a mask")
        if function is aten._to_copy.default:
            here, there = arguments[0].device, options.get("device", arguments[0].device)
            if here.type != there.type:
                raise HostWaited(f"{function} from {here} to {there}")
        if self.inside is not None and function.namespace == "diffmd_fast":
            with self:
                return function._op_dk(self.inside, *arguments, **options)
        result = function(*arguments, **options)
        # Numbers travel with a kernel's arguments, but not into where.
        given = [each.device.type for each in arguments if isinstance(each, Tensor) and (
            each.dim() or function is aten.where.self)]
        made = [result.device.type] if isinstance(result, Tensor) else []
        if given and len({*given, *made}) > 1:
            raise HostWaited(f"{function} from {given} to {made}")
        return result


def on_meta(thing, seen: dict | None = None):
    """``thing`` with every tensor in it, and in what it holds, on the device "meta".

    That has no memory, so that no value can be read, and it is not the CPU, so that copies between the two show.
    """
    seen = {} if seen is None else seen
    if id(thing) not in seen:
        seen[id(thing)] = thing, _copy_on_meta(thing, seen)  # with the original, so that no id comes twice
    return seen[id(thing)][1]


def _copy_on_meta(thing, seen: dict):
    if isinstance(thing, Tensor):
        return torch.empty_strided(thing.shape, thing.stride(), dtype=thing.dtype, device="meta")
    if isinstance(thing, dict):
        return type(thing)((key, on_meta(value, seen)) for key, value in thing.items())
    if isinstance(thing, (list, tuple)):
        values = [on_meta(value, seen) for value in thing]
        return type(thing)(*values) if hasattr(thing, "_fields") else type(thing)(values)
    if isinstance(thing, MethodType):
        return MethodType(thing.__func__, on_meta(thing.__self__, seen))
    if not type(thing).__module__.startswith(("diffmd_fast", "tests")) or isinstance(thing, (type, FunctionType)):
        return thing
    result = object.__new__(type(thing))
    seen[id(thing)] = thing, result
    result.__dict__.update({key: on_meta(value, seen) for key, value in vars(thing).items()})
    return result
