"""The CUDA side: built where nvcc is, and a clear word why it does not run where it does not."""

import re

import torch

from diffmd_fast import _C


def test_build_info_says_what_was_compiled():
    assert re.fullmatch(r"\d+\.\d+ \(sm_\d+(, sm_\d+)*\)|.+ when this was built", _C.build_info()["cuda_compiler"])


def test_probe_runs_or_says_why_not():
    reason = _C.cuda_probe()
    if _C.build_info()["cuda_compiler"].endswith("when this was built"):
        assert re.fullmatch(r"compiled without CUDA: .+ when this package was built", reason)
    elif torch.cuda.is_available():
        assert reason == ""  # the device's random words are the host's
    else:
        assert re.match(r"no NVIDIA driver|no CUDA device|the NVIDIA driver is for CUDA|CUDA: ", reason)
        assert "\n" not in reason
    assert _C.cuda_probe() == reason
