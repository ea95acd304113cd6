"""``python -m diffmd_fast`` is ``diffmd-fast``."""

from .cli import main

main()
