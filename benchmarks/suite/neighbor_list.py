"""Neighbor lists: many small molecules, one periodic fluid, and one list along a trajectory; against the peers.

Peers are what a Python user has for the same list: vesin, matscipy, scipy's k-d tree, and torch.cdist with nonzero.
Each is asked for a full list with distances in its own fastest form, side by side with ours in one process.
"""

import statistics
import time

import numpy as np
import torch

from diffmd_fast import ops, use_backend

from .common import ALL, BACKENDS, molecule, pin, speedup

CUTOFF, SIZES = 2.5, [1000, 8000, 64000]


def fluid(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """n particles at reduced density 0.8 in a cubic box, in random order."""
    length = (n / 0.8) ** (1 / 3)
    return length * torch.rand(1, n, 3, generator=torch.Generator().manual_seed(1)), torch.full((3,), length)


def in_spatial_order(x: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """The same particles, cube after cube of the cutoff's size: near in space, near in memory."""
    cell = (x[0] / CUTOFF).long().double()
    cells = float(box[0] / CUTOFF) + 2
    return x[:, torch.argsort((cell[:, 0] * cells + cell[:, 1]) * cells + cell[:, 2])].contiguous()


class Molecules:
    params = [BACKENDS]
    param_names = ["backend"]

    def setup(self, backend):
        pin()
        self.x = molecule(256, ALL)

    def time_256_molecules_with_distances(self, backend):
        with use_backend(backend):
            ops.neighbor_list(self.x, 0.5, return_distances=True)


class Fluid:
    params = [BACKENDS, [1000, 8000]]
    param_names = ["backend", "particles"]

    def setup(self, backend, particles):
        pin()
        self.x, self.box = fluid(particles)

    def time_periodic_with_distances(self, backend, particles):
        with use_backend(backend):
            ops.neighbor_list(self.x, CUTOFF, box=self.box, return_distances=True)


def track_speedup_molecules():
    pin()
    x = molecule(256, ALL)
    return speedup(lambda: ops.neighbor_list(x, 0.5, return_distances=True))


def track_speedup_fluid_1000():
    pin()
    x, box = fluid(1000)
    return speedup(lambda: ops.neighbor_list(x, CUTOFF, box=box, return_distances=True), 3)


track_speedup_molecules.unit = track_speedup_fluid_1000.unit = "reference/native"


# ---- against the peers -------------------------------------------------------------------------------------
def vesin(cutoff, frames, length):
    from vesin import NeighborList

    search = NeighborList(cutoff=cutoff, full_list=True)
    box, periodic = np.eye(3) * (length or 0.0), length is not None
    return lambda: [search.compute(x, box, periodic, "ijd") for x in frames]


def matscipy(cutoff, frames, length):
    from matscipy.neighbours import neighbour_list

    box, periodic = np.eye(3) * (length or 10.0), np.full(3, length is not None)
    return lambda: [neighbour_list("ijd", positions=x, cell=box, pbc=periodic, cutoff=cutoff) for x in frames]


def scipy(cutoff, frames, length):
    """Each pair once and mirrored with numpy, which is faster than asking the tree for both."""
    from scipy.spatial import cKDTree

    def one(x):
        i, j = cKDTree(x, boxsize=length).query_pairs(cutoff, output_type="ndarray").T
        d = x[j] - x[i]
        if length is not None:
            d -= length * np.round(d / length)
        distances = np.sqrt((d * d).sum(1))
        return np.concatenate([i, j]), np.concatenate([j, i]), np.concatenate([distances, distances])

    return lambda: [one(x) for x in frames]


def cdist(cutoff, frames, length):
    """torch.cdist and nonzero on float32, without a box only; atoms find themselves, and distances stay a matrix."""
    if length is not None:
        raise ImportError("torch.cdist knows no box")
    x = torch.from_numpy(np.stack(frames)).float()

    def search():
        distances = torch.cdist(x, x)
        return distances, torch.nonzero(distances < cutoff)

    return search


PEERS = {"vesin": vesin, "matscipy": matscipy, "scipy": scipy, "cdist": cdist}


class Against:
    """Times of ours and of the peers that are here, medians of alternating calls.

    Each measured call follows one of its own kind: none finds the caches that another left.
    """

    def __init__(self, x, cutoff, box, repeats, peers=PEERS):
        pin()
        frames = list(x.double().numpy())
        calls = {"ours": lambda: ops.neighbor_list(x, cutoff, box=box, return_distances=True)}
        for name in peers:
            try:
                calls[name] = PEERS[name](cutoff, frames, None if box is None else float(box[0]))
            except ImportError as error:
                print(f"{name} is skipped: {error}")
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(repeats):
            for name, call in calls.items():
                call()
                started = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - started)
        self.medians = {name: statistics.median(taken) for name, taken in seconds.items()}

    def ratio(self) -> float:
        """The fastest peer's time over ours."""
        peers = [taken for name, taken in self.medians.items() if name != "ours"]
        if not peers:
            raise NotImplementedError("no peer is installed: pip install '.[bench]'")
        return min(peers) / self.medians["ours"]


def against_fluid(particles, peers=PEERS) -> Against:
    x, box = fluid(particles)
    return Against(x, CUTOFF, box, {1000: 31, 8000: 11}.get(particles, 5), peers)


def track_speedup_over_peers_molecules():
    return Against(molecule(256, ALL), 0.5, None, 21).ratio()


def track_speedup_over_peers_fluid(particles):
    return against_fluid(particles).ratio()


def track_speedup_over_one_peer_molecules(peer):
    return Against(molecule(256, ALL), 0.5, None, 15, peers=(peer,)).ratio()


def track_speedup_over_one_peer_fluid(peer, particles):
    return against_fluid(particles, (peer,)).ratio()


def _skip_missing(peer, particles=None):
    """asv shows a benchmark whose setup raises this as skipped."""
    if particles is not None and peer == "cdist":
        print("cdist is skipped: torch.cdist knows no box")
        raise NotImplementedError
    try:
        PEERS[peer](1.0, [np.zeros((1, 3))], None)
    except ImportError as error:
        print(f"{peer} is skipped: {error}")
        raise NotImplementedError from None


track_speedup_over_peers_fluid.params, track_speedup_over_peers_fluid.param_names = [SIZES], ["particles"]
track_speedup_over_one_peer_molecules.params = [list(PEERS)]
track_speedup_over_one_peer_molecules.param_names = ["peer"]
track_speedup_over_one_peer_fluid.params = [list(PEERS), SIZES]
track_speedup_over_one_peer_fluid.param_names = ["peer", "particles"]
track_speedup_over_one_peer_molecules.setup = track_speedup_over_one_peer_fluid.setup = _skip_missing
for track in (track_speedup_over_peers_fluid, track_speedup_over_one_peer_fluid):
    track.timeout = 300
track_speedup_over_peers_molecules.unit = track_speedup_over_peers_fluid.unit = "fastest peer/native"
track_speedup_over_one_peer_molecules.unit = track_speedup_over_one_peer_fluid.unit = "peer/native"


# ---- size, and a list that is kept -------------------------------------------------------------------------
def seconds_per_particle(particles: int, spatial: bool, repeats: int) -> float:
    x, box = fluid(particles)
    x = in_spatial_order(x, box) if spatial else x
    seconds = []
    for i in range(repeats + 1):
        started = time.perf_counter()
        ops.neighbor_list(x, CUTOFF, box=box, return_distances=True)
        if i:
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds) / particles


def track_million_over_hundred_thousand(order):
    """Time per particle of 10^6 over that of 10^5, one thread."""
    pin()
    spatial = order == "spatial"
    return seconds_per_particle(10**6, spatial, 2) / seconds_per_particle(10**5, spatial, 5)


track_million_over_hundred_thousand.params = [["spatial", "random"]]
track_million_over_hundred_thousand.param_names = ["order"]
track_million_over_hundred_thousand.unit, track_million_over_hundred_thousand.timeout = "1", 300


def track_verlet_reuse(particles):
    """A new list over an update that finds the old one still complete."""
    pin()
    x, box = fluid(particles)
    verlet = ops.VerletList(CUTOFF, 0.3)
    verlet.update(x, box)
    seconds: dict[str, list[float]] = {"fresh": [], "kept": []}
    for i in range(8):
        for name, call in (("fresh", lambda: ops.neighbor_list(x, CUTOFF, box=box, skin=0.3)),
                           ("kept", lambda: verlet.update(x, box))):
            started = time.perf_counter()
            call()
            if i:
                seconds[name].append(time.perf_counter() - started)
    assert verlet.n_builds == 1
    return statistics.median(seconds["fresh"]) / statistics.median(seconds["kept"])


track_verlet_reuse.params, track_verlet_reuse.param_names = [SIZES], ["particles"]
track_verlet_reuse.unit = "fresh/kept"
