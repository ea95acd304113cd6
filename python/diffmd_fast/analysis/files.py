"""A result as files: a figure and its numbers, in a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, check_new_folder
from ..io.sidecar import write_atomically


def write_result(
    out_dir: str | os.PathLike, name: str, draw: Callable[[Path], None], numbers: Mapping[str, Any]
) -> dict[str, Path]:
    """Write NAME.png by ``draw`` and NAME.json into a folder, made if missing; their paths as "figure" and "numbers".

    Raises `InputError` for a place that cannot be written to.
    """
    folder = check_new_folder(out_dir, "out_dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"out_dir: expected a place where a folder can be made, got {folder} ({error.strerror})"
        ) from None
    figure, file = folder / f"{name}.png", folder / f"{name}.json"
    draw(figure)
    write_atomically(file, json.dumps(numbers, indent=1, allow_nan=False) + "\n")
    return {"figure": figure, "numbers": file}
