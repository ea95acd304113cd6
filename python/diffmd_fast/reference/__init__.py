"""The operators in plain PyTorch, with the signatures of :mod:`diffmd_fast.ops`.

They are the truth of the tests and the baseline of the benchmarks: short, never optimized, on any device and in
float64 when asked.  ``diffmd_fast.reference.em_step(...)`` is ``diffmd_fast.ops.em_step(...)`` under
``use_backend("reference")``; the mathematics is in the modules of this folder.
"""

from __future__ import annotations

from functools import wraps

from ..backend import use_backend

OPERATORS = ("em_step", "neighbor_list", "spline_conv", "torsions")


def _bind(ops) -> None:
    """Give this package the operators' names; called once, after ops has imported the modules of this folder."""
    for name in OPERATORS:
        globals()[name] = _through_reference(getattr(ops, name))


def _through_reference(operator):
    @wraps(operator)
    def call(*args, **kwargs):
        with use_backend("reference"):
            return operator(*args, **kwargs)

    return call
