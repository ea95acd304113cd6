"""Several processes of one run, as torchrun starts them: which one this is, its share, its GPU, what they agree on.

Nothing is exchanged in the middle of a sampling run, and one small sum a step while training.  What is exchanged goes
through gloo, on CPUs; NCCL carries gradients only, where parameters are on GPUs.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import socket
import tempfile
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from .errors import InputError, NonFiniteError, UnavailableError, require

# Who is done early waits for the slowest, whose replicas may take hours longer; who is dead is noticed at once, by
# its closed connection.
PATIENCE = timedelta(days=365)
_KEPT = (InputError, NonFiniteError, UnavailableError, OSError)


class ProcessFailed(RuntimeError):
    """Another process of the run ended, so this one cannot go on."""


class Processes:
    """The processes of one run, seen from one of them; ``Processes()`` is a single one, alone.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None):
        self.rank, self.size, self._store = rank, size, store

    @functools.cached_property
    def device(self) -> torch.device:
        """Where this process computes: under torchrun the GPU of its LOCAL_RANK, if there are GPUs; else the CPU.

        Raises:
            InputError: more processes on this node than it has GPUs.
        """
        if self._store is None or not torch.cuda.is_available():
            return torch.device("cpu")
        n_gpus, n_local = torch.cuda.device_count(), int(os.environ["LOCAL_WORLD_SIZE"])
        require(n_local <= n_gpus, "nproc_per_node", f"at most {n_gpus}, the GPUs of this node (CUDA_VISIBLE_DEVICES= "
                "hides them, for a run on CPUs)", n_local)
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        return device

    def share(self, n: int) -> slice:
        """The part of 0, ..., n - 1 that is this process's: contiguous, in the order of the ranks."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def gather(self, value: Any) -> list[Any]:
        """Every process's ``value``, in the order of the ranks; all must call it.

        Raises:
            ProcessFailed: another process has ended.
        """
        values = [value] * self.size
        if self.size > 1:
            _exchange(distributed.all_gather_object, values, value)
        return values

    def first(self, function: Callable[[], Any]) -> Any:
        """What ``function`` gives on process 0, which alone calls it; its exception is everybody's."""
        if self.size == 1:
            return function()
        answer: list[Any] = [None]
        if self.rank == 0:
            try:
                answer[0] = function(), None
            except Exception as error:
                answer[0] = None, error if isinstance(error, _KEPT) else ProcessFailed(f"process 0: {error}")
                _exchange(distributed.broadcast_object_list, answer)
                raise
        _exchange(distributed.broadcast_object_list, answer)
        value, error = answer[0]
        if error is not None:
            raise error
        return value

    def agree(self, seconds: float, stop: bool) -> tuple[float, bool]:
        """The clock of process 0, and whether any process wants to stop: the same answer for all."""
        if self.size == 1:
            return seconds, stop
        values = torch.tensor([seconds if self.rank == 0 else 0.0, float(stop)], dtype=torch.float64)
        _exchange(distributed.all_reduce, values)
        return values[0].item(), values[1].item() > 0

    def sum(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor (all of one dtype and device) by its sum over the processes, the same bits on all."""
        if self.size == 1:
            return
        tensors = list(tensors)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        _exchange(distributed.all_reduce, flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(part.view_as(tensor))

    def check_shared(self, folder: str | Path, argument: str) -> None:
        """Refuse a folder that some process does not see: one on another node, without a shared file system."""
        if self.size == 1:
            return
        with contextlib.ExitStack() as stack:
            def mark() -> str:
                return stack.enter_context(tempfile.NamedTemporaryFile(dir=folder, prefix=".diffmd_fast.")).name

            name = self.first(mark)
            seen = self.gather((os.path.exists(name), socket.gethostname()))
        for rank, (good, host) in enumerate(seen):
            require(good, argument, "a folder that every process sees, on a file system that the nodes share",
                    f"{str(folder)!r}, where process {rank} on {host} does not see what process 0 wrote")

    def close(self) -> None:
        """Take leave of the others, at the end of the program."""
        if self._store is not None:
            distributed.destroy_process_group()

    def speaks(self) -> bool:
        """Whether this process is the first to ask: one error of a run is told once, by whom it befell first."""
        return self._store is None or self._store.add("diffmd_fast/errors", 1) == 1


@functools.cache
def torchrun_processes() -> Processes:
    """The processes that torchrun started, this one among them; without torchrun this one, alone, on the CPU.

    The first call waits for the others, at most 5 minutes.
    """
    if not (distributed.is_available() and distributed.is_torchelastic_launched()):
        return Processes()
    store, rank, size = next(distributed.rendezvous("env://", timeout=timedelta(minutes=5)))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    return Processes(rank, size, store)


def _exchange(collective: Callable[..., Any], *arguments: Any) -> None:
    try:
        collective(*arguments)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ProcessFailed("processes: another process of this run ended, so this one stops; what was saved is kept, "
                            "and --resume goes on") from error
