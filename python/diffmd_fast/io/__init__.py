"""Reading and writing structures and trajectories.  MDTraj is imported only where a file asks for it."""

from .matching import match_atoms
from .molecule import Molecule
from .snapshots import Snapshots, load_topology, read_forces, read_snapshots
from .store import TrajectoryStore
from .trajectory import check_output, write_trajectory

__all__ = [
    "Molecule",
    "Snapshots",
    "TrajectoryStore",
    "check_output",
    "load_topology",
    "match_atoms",
    "read_forces",
    "read_snapshots",
    "write_trajectory",
]
