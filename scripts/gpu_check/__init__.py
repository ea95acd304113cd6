"""``make gpu-check``: is the GPU side right on this card, and how fast is it there?

    python3 -m scripts.gpu_check                 # from the root of the source tree; torch and Triton as they are
    python3 -m scripts.gpu_check --device cpu    # the same checks through the native code, at small sizes

Every check and every measurement is one case, an entry in the list CASES of ``correctness.py`` or ``benchmarks.py``;
what was asked for is one entry in ROWS of ``rows.py``.  Cases run in worker processes (``worker.py``), so that one
that crashes, hangs or spoils the CUDA context costs itself alone.  docs/gpu.md says what is checked and how to read
the result.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
