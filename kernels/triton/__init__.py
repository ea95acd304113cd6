"""Triton kernels.  Triton is optional: only functions of diffmd_fast import this package, when a kernel is wanted.

``INTERPRETED`` says whether the kernels were imported under ``TRITON_INTERPRET=1``: they then run in Triton's
interpreter, on tensors of any device, with the same integer and IEEE arithmetic as on a GPU.
"""

import triton

if not hasattr(triton, "knobs"):
    raise ImportError(f"Triton {triton.__version__} is older than 3.4")

INTERPRETED: bool = triton.knobs.runtime.interpret
