"""The package as installed: the extension is there, imports are light, contracts are what the docs say."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

import diffmd_fast

CONTRACT = {"EnergyModel", "InputError", "NonFiniteError", "Processes", "Sampler", "Spring", "UnavailableError",
            "__version__", "current_backend", "get_num_threads", "io", "load_model", "models", "ops", "reference",
            "save_model", "set_num_threads", "show_config", "torchrun_processes", "use_backend"}
OPERATORS = ("em_step", "neighbor_list", "spline_conv", "torsions")


def test_the_compiled_extension_is_there():
    assert Path(diffmd_fast._C.__file__).suffix in (".so", ".pyd")
    info = diffmd_fast._C.build_info()
    assert info["openmp"] and "baseline" in info["simd_usable"] and info["simd"] == info["simd_usable"][-1]


def test_contracts():
    assert set(diffmd_fast.__all__) == CONTRACT
    for name in OPERATORS:
        assert callable(getattr(diffmd_fast.ops, name)) and callable(getattr(diffmd_fast.reference, name))
        assert hasattr(torch.ops.diffmd_fast, name)


def test_version_is_the_distributions():
    from importlib.metadata import version

    assert diffmd_fast.__version__ == version("diffmd-fast")


def test_heavy_libraries_are_not_imported_until_used():
    code = ("import sys, diffmd_fast; "
            "print([m for m in ('mdtraj', 'matplotlib', 'tables', 'triton') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_extension_shares_torchs_openmp_runtime():
    """Two OpenMP runtimes would fight for the cores.  (mdtraj brings one of its own, for its own loops.)"""
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc")
    code = ("import diffmd_fast; print(*{line.split()[-1] for line in open('/proc/self/maps') "
            "if 'omp' in line and '.so' in line})")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(done.stdout.split()) == 1, done.stdout


def test_show_config_says_what_can_run(capsys):
    diffmd_fast.show_config()
    text = capsys.readouterr().out
    for word in ("torch", "SIMD", "threads", "OpenMP", "CUDA", "backend    native", "available"):
        assert word in text
    from diffmd_fast.config import config

    assert json.loads(json.dumps(config()))["backends"]["native"] == "available"


def test_threads_can_be_set():
    try:
        diffmd_fast.set_num_threads(1)
        assert diffmd_fast.get_num_threads() == 1
    finally:
        diffmd_fast.set_num_threads(None)
    assert diffmd_fast.get_num_threads() == torch.get_num_threads()
    with pytest.raises(diffmd_fast.InputError, match="^n_threads:"):
        diffmd_fast.set_num_threads(0)


@pytest.mark.slow
def test_sdist_without_git_builds_a_wheel_that_runs(tmp_path):
    """python -m build: an sdist, a wheel from that sdist (no git, no torch at build time), and its import."""
    root = Path(__file__).resolve().parents[1]
    run = lambda *words, **more: subprocess.run(words, check=True, capture_output=True, text=True, **more)  # noqa: E731
    run(sys.executable, "-m", "pip", "install", "-q", "build")
    run(sys.executable, "-m", "build", "--outdir", str(tmp_path), str(root))
    (wheel,) = tmp_path.glob("*.whl")
    assert list(tmp_path.glob("*.tar.gz"))
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path / "site"), str(wheel))
    # -S: without the start-up files of site-packages, among which is the hook of an editable install.
    code = (f"import sys; sys.path[:0] = [{str(tmp_path / 'site')!r}, {sysconfig.get_path('purelib')!r}]; "
            "import diffmd_fast, diffmd_fast.kernels as k; print(diffmd_fast.__file__, k.__file__)")
    done = run(sys.executable, "-S", "-c", code, cwd=tmp_path)
    assert done.stdout.count(str(tmp_path / "site")) == 2
