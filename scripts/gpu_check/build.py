"""The package out of the source tree, without pip and without network: links to the Python files, and the extension.

CMake builds the extension where it finds pybind11's own configuration.  Elsewhere the compilers are called directly,
with the headers of pybind11 that every torch brings, and with nothing fused.  Both for the lowest SIMD level alone.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import ROOT

HOST_FLAGS = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math",
              "-ffp-contract=off", "-fopenmp", "-Wno-unknown-pragmas"]
CUDA_FLAGS = ["-std=c++17", "-fmad=false", "-Xcompiler=-fPIC,-fvisibility=hidden"]


class BuildError(Exception):
    """What is missing, or the end of what a compiler said."""


def build(folder: Path, architecture: str | None, seconds: float, by_cmake: bool | None = None) -> str:
    """Lay out ``folder``/diffmd_fast, ready for PYTHONPATH, and say how it was built.

    Args:
        folder: what it held of the package is replaced.
        architecture: compute capability of the card, as "90"; None leaves the CUDA code out.
        seconds: that all of it may take.
        by_cmake: None takes CMake where it can be used.
    """
    package = folder / "diffmd_fast"
    lay_out(package)
    if by_cmake is None:
        by_cmake = bool(shutil.which("cmake") and _pybind11_of_cmake())
    how = _by_cmake if by_cmake else _directly
    return how(folder, architecture, time.monotonic() + seconds)


def lay_out(package: Path) -> None:
    """The folders as the wheel maps them (pyproject.toml), as links; a stale extension is removed."""
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for path in (ROOT / "python" / "diffmd_fast").iterdir():
        if path.suffix != ".so" and path.name != "__pycache__":
            (package / path.name).symlink_to(path)
    (package / "kernels").symlink_to(ROOT / "kernels")


def find_nvcc() -> str | None:
    """nvcc on PATH, of CUDA_HOME, or where the toolkit is installed by default."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    return shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(f"{home}/bin" for home in homes if home))


def _pybind11_of_cmake() -> str | None:
    found = importlib.util.find_spec("pybind11")
    folder = Path(found.origin).parent / "share" / "cmake" / "pybind11" if found and found.origin else None
    return str(folder) if folder and folder.is_dir() else None


def _by_cmake(folder: Path, architecture: str | None, end: float) -> str:
    made = folder / "cmake"
    nvcc = find_nvcc() if architecture else None
    options = [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={_pybind11_of_cmake()}",
               "-DCMAKE_BUILD_TYPE=Release", f"-DSKBUILD_PROJECT_VERSION={_version()}",
               f"-DDIFFMD_CUDA={'ON' if nvcc else 'OFF'}",
               # as if the compiler knew no higher level: the CPU is what results are compared with, not what is timed
               "-DDIFFMD_COMPILES_avx2=OFF", "-DDIFFMD_COMPILES_avx512=OFF",
               "-DCMAKE_INTERPROCEDURAL_OPTIMIZATION=OFF"]  # pybind11's default takes as long as the rest
    if nvcc:
        options += [f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DCMAKE_CUDA_ARCHITECTURES={architecture}-real"]
    if shutil.which("ninja"):
        options.append("-GNinja")
    shutil.rmtree(made, ignore_errors=True)  # of another python, perhaps
    _run(["cmake", "-S", str(ROOT), "-B", str(made), *options], end)
    _run(["cmake", "--build", str(made), "--parallel", str(os.cpu_count())], end)
    _run(["cmake", "--install", str(made), "--prefix", str(folder)], end)
    return f"CMake, {_cuda_part(nvcc, architecture)}"


def _directly(folder: Path, architecture: str | None, end: float) -> str:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise BuildError("no C++ compiler: neither g++ nor c++ is on PATH")
    nvcc = find_nvcc() if architecture else None
    objects = folder / "objects"
    shutil.rmtree(objects, ignore_errors=True)
    objects.mkdir(parents=True)
    include = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'kernels' / 'cuda'}"]
    here = [f"-I{path}" for path in (*_pybind11_headers(), sysconfig.get_path("include"))]
    said = {"DIFFMD_VERSION": _version(), "DIFFMD_COMPILER": f"{Path(compiler).name}, one level",
            "DIFFMD_CUDA_COMPILER": f"{_nvcc_version(nvcc)} (sm_{architecture})" if nvcc else "",
            "DIFFMD_CUDA_MISSING": "nvcc was not found" if architecture else "CUDA was left out"}
    of_bindings = ["-DDIFFMD_HAS_baseline", *(f'-D{name}="{value}"' for name, value in said.items())]
    sources = {path: [compiler, *HOST_FLAGS, "-DDIFFMD_LEVEL=baseline", *include]
               for path in sorted((ROOT / "csrc").glob("*.cpp"))}
    sources |= {path: [compiler, *HOST_FLAGS, *of_bindings, *include, *here]
                for path in sources if path.name.startswith("bindings")}
    sources |= {path: [compiler, *HOST_FLAGS, *include] for path in sorted((ROOT / "kernels" / "cuda").glob("*.cpp"))}
    if nvcc:
        target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
        sources |= {path: [nvcc, *CUDA_FLAGS, target, *include]
                    for path in sorted((ROOT / "kernels" / "cuda").glob("*.cu"))}
    made = {path: objects / (path.name + ".o") for path in sources}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        longest_first = sorted(sources, key=lambda path: (path.suffix != ".cu", path.stem[:8] != "bindings"))
        list(pool.map(lambda path: _run([*sources[path], "-c", str(path), "-o", str(made[path])], end),
                      longest_first))
    # nvcc links too: it knows where its runtime is
    link = [nvcc, "-shared", "-cudart=static", "-Xcompiler=-fopenmp"] if nvcc else [compiler, "-shared", "-fopenmp"]
    extension = folder / "diffmd_fast" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    _run([*link, *map(str, made.values()), "-o", str(extension)], end)
    return f"{Path(compiler).name} directly, {_cuda_part(nvcc, architecture)}"


def _cuda_part(nvcc: str | None, architecture: str | None) -> str:
    if nvcc:
        return f"nvcc {_nvcc_version(nvcc)} for sm_{architecture}"
    return "without CUDA kernels: nvcc was not found" if architecture else "without CUDA kernels"


def _pybind11_headers() -> list[str]:
    """Of pybind11 itself where it is installed, else those that torch ships."""
    for name, inside in (("pybind11", "include"), ("torch", "include")):
        found = importlib.util.find_spec(name)
        if found and found.origin:
            folder = Path(found.origin).parent / inside
            if (folder / "pybind11" / "pybind11.h").is_file():
                return [str(folder)]
    raise BuildError("no headers of pybind11: neither pybind11 nor torch has them")


def _nvcc_version(nvcc: str) -> str:
    return re.search(r"release (\d+\.\d+)", _run([nvcc, "--version"], time.monotonic() + 30)).group(1)


def _version() -> str:
    return re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M).group(1)


def _run(command: list[str], end: float) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise BuildError(f"{command[0]} was not done when the time for the build was over") from None
    except OSError as error:
        raise BuildError(f"{command[0]}: {error}") from None
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout
