"""Operators: checks, schema, fake, autograd and dispatch by device.  ``torch.ops.diffmd_fast.*`` underneath."""

from ._library import get_num_threads, set_num_threads
from .em_step import EmStepResult, em_step
from .fixed_list import FixedList
from .neighbor_list import NeighborList, neighbor_list
from .spline_conv import spline_conv
from .torsions import torsions
from .verlet_list import VerletList

__all__ = ["EmStepResult", "FixedList", "NeighborList", "VerletList", "em_step", "get_num_threads", "neighbor_list",
           "set_num_threads", "spline_conv", "torsions"]
