"""What the benchmarks share: molecules of the size of alanine dipeptide, and ratios taken side by side."""

from __future__ import annotations

import statistics
import time

import torch

from diffmd_fast import set_num_threads, use_backend
from diffmd_fast.models import SchNet

HEAVY, ALL = 10, 22  # atoms of alanine dipeptide without and with hydrogens
BACKENDS = ["native", "reference"]


def pin(threads: int = 1) -> None:
    """The same number of threads for both sides, and no denormals on either."""
    torch.set_num_threads(threads)
    set_num_threads(threads)
    torch.set_flush_denormal(True)


def molecule(n_replicas: int, n_atoms: int, dtype=torch.float32) -> torch.Tensor:
    """A chain with 0.15 nm bonds folded into the size of the real molecule [replicas, atoms, 3] nm."""
    generator = torch.Generator().manual_seed(7)
    steps = torch.randn(n_atoms, 3, generator=generator)
    chain = torch.cumsum(0.15 * steps / steps.norm(dim=1, keepdim=True), 0) * 0.8
    return (chain + 0.01 * torch.randn(n_replicas, n_atoms, 3, generator=generator)).to(dtype)


def schnet(n_atoms: int, n_blocks: int = 3, n_features: int = 64) -> SchNet:
    """A SchNet of the default size with springs, bends, torsions and random parameters."""
    torch.manual_seed(0)
    bonds = [(i, i + 1) for i in range(n_atoms - 1)]
    springs = {"pairs": bonds, "mean": [0.15] * len(bonds), "variance": [1e-5] * len(bonds)}
    triples = [(i, i + 1, i + 2) for i in range(n_atoms - 2)]
    bends = {"triples": triples, "mean": [-0.4] * len(triples), "variance": [5e-3] * len(triples),
             "slope": [120.0] * len(triples)}
    return SchNet(n_atoms, n_features, n_blocks, bonds=bonds, springs=springs, bends=bends, spread=0.02, n_harmonics=6)


def median_seconds(call, repeats: int = 7) -> float:
    call()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def speedup(call, repeats: int = 7) -> float:
    """Reference time over native time of ``call``, medians of alternating calls: drift of the machine cancels."""
    seconds: dict[str, list[float]] = {name: [] for name in BACKENDS}
    for i in range(repeats + 1):
        for name in BACKENDS:
            with use_backend(name):
                started = time.perf_counter()
                call()
                if i:  # the first round warms up
                    seconds[name].append(time.perf_counter() - started)
    return statistics.median(seconds["reference"]) / statistics.median(seconds["native"])
