"""Energy and score of one periodic fluid by list: time and memory per particle from 10^4 to 10^6 particles."""

import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from diffmd_fast.models import SchNet

from .common import pin
from .neighbor_list import fluid

SIZES = [10_000, 100_000, 1_000_000]
CUTOFF = 2.5  # 52 neighbors


def system(n: int) -> tuple[SchNet, torch.Tensor]:
    """The default SchNet (64 features, 3 blocks) with random parameters on n particles of one type."""
    torch.manual_seed(0)
    positions, box = fluid(n)
    return SchNet(1, cutoff=CUTOFF, atom_types=[18]).for_molecule([18] * n, box=box), positions


def seconds_per_particle(sizes: list[int], repeats: int = 3) -> dict[int, float]:
    """Processor seconds a particle, medians over rounds in which every size does the same number of particles.

    A long evaluation meets the average of what else the machine does, the fastest of short ones its best moment; so
    as many short ones as the long one has room for are added up.
    """
    systems = {n: system(n) for n in sizes}
    seconds: dict[int, list[float]] = {n: [] for n in sizes}
    for i in range(repeats + 1):
        for n, (model, positions) in systems.items():
            n_evaluations = max(sizes) // n
            started = time.process_time()
            for _ in range(n_evaluations):
                model.energy_and_score(positions)
            if i:  # the first round warms up
                seconds[n].append((time.process_time() - started) / (n * n_evaluations))
    return {n: statistics.median(values) for n, values in seconds.items()}


def track_time_per_particle(particles):
    pin()
    return 1e6 * seconds_per_particle([particles])[particles]


def track_ratio_of_a_million_to_100000():
    pin()
    seconds = seconds_per_particle([100_000, 1_000_000])
    return seconds[1_000_000] / seconds[100_000]


def track_bytes_per_particle(particles):
    """Peak resident memory of a process of its own over two evaluations, less what a small system takes."""
    here = Path(__file__).resolve()
    return float(subprocess.run([sys.executable, "-m", f"{here.parent.name}.{here.stem}", str(particles)], check=True,
                                capture_output=True, text=True, cwd=here.parents[1]).stdout)


for track in (track_time_per_particle, track_bytes_per_particle):
    track.params, track.param_names = SIZES, ["particles"]
track_time_per_particle.unit, track_bytes_per_particle.unit = "us", "bytes"
track_ratio_of_a_million_to_100000.unit = "1"
track_time_per_particle.timeout = track_ratio_of_a_million_to_100000.timeout = 900


def memory(peak: bool) -> int:
    """Resident memory of this process in bytes (Linux)."""
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM" if peak else "VmRSS"))


def bytes_per_particle(n: int) -> float:
    pin()
    model, positions = system(1000)
    model.energy_and_score(positions)
    base = memory(peak=False)
    model, positions = system(n)
    for _ in range(2):  # the second finds what the first has kept
        model.energy_and_score(positions)
    return (memory(peak=True) - base) / n


if __name__ == "__main__":
    print(bytes_per_particle(int(sys.argv[1])))
