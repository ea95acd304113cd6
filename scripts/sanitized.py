"""Install the package built with AddressSanitizer and UBSan into an environment of its own, and run Python in it.

    .venv/bin/python scripts/sanitized.py install build/sanitize/venv         (make does both)
    build/sanitize/venv/bin/python scripts/sanitized.py run -m pytest tests/ops
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ASAN = {
    "detect_leaks": 0,  # Python and torch keep memory until the process ends, by design
    "halt_on_error": 1,
    # A size that no machine has is refused by malloc, as without the sanitizer, and torch raises its error.
    "allocator_may_return_null": 1,
    "max_allocation_size_mb": 8192,
}
UBSAN = {"print_stacktrace": 1, "halt_on_error": 1}


def install(environment: Path) -> None:
    """Wheel and CMake build are apart from those of .venv, whose libraries the environment sees but never changes."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.check_output([environment / "bin/python", "-c", code], text=True).strip()
    # A path in a .pth file is searched, but the .pth files found there are not obeyed: the editable install of .venv
    # stays out of sight.
    Path(own, "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    settings = {"build-dir": str(environment.parent / "cmake"), "cmake.build-type": "RelWithDebInfo",
                "install.strip": "false", "cmake.define.DIFFMD_SANITIZE": "ON", "cmake.define.DIFFMD_CUDA": "OFF"}
    options = [word for name, value in settings.items() for word in ("-C", f"{name}={value}")]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--upgrade",
                    "--target", own, *options, str(ROOT)], check=True)


def run(words: list[str]) -> None:
    """Become this interpreter again, with the sanitizers' runtime loaded before everything else."""
    compiler = os.environ.get("CXX", "c++")
    # libstdc++ as well: Python does not link it, and AddressSanitizer looks for its exceptions once, at the start.
    libraries = [subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
                 for name in ("libasan.so", "libstdc++.so")]
    settings = {"LD_PRELOAD": " ".join(libraries), "DIFFMD_SANITIZED": "1",  # tests/test_sanitized.py
                "ASAN_OPTIONS": _options(ASAN, "ASAN_OPTIONS"), "UBSAN_OPTIONS": _options(UBSAN, "UBSAN_OPTIONS")}
    os.execve(sys.executable, [sys.executable, *words], {**os.environ, **settings})


def _options(values: dict[str, int], name: str) -> str:
    """The user's own come last and win."""
    return ":".join([*(f"{key}={value}" for key, value in values.items()), os.environ.get(name, "")]).rstrip(":")


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "install":
        install(Path(sys.argv[2]).resolve())
    elif len(sys.argv) > 2 and sys.argv[1] == "run":
        run(sys.argv[2:])
    else:
        sys.exit(__doc__)
