"""torchrun with two processes on gloo: the trajectory and the model are those of one process, whatever happens."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import diffmd_fast
from diffmd_fast import InputError, Processes, Sampler, Spring
from diffmd_fast.io import TrajectoryStore, read_snapshots
from diffmd_fast.models import TraPPEAlkane
from diffmd_fast.sampling.shares import gather_shares, share_path
from diffmd_fast.training import Settings, train

from .sampling.common import chain_positions, small_schnet

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
N_STEPS, SAVE_EVERY = 60, 20


def start_run(n_processes, *words):
    """torchrun of ``diffmd-fast`` in a session of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}",
               "-m", "diffmd_fast", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
                            start_new_session=True)


def torchrun(n_processes, *words, code=0):
    process = start_run(n_processes, *words)
    out, err = process.communicate(timeout=120)
    assert (process.returncode != 0) == (code != 0), (process.returncode, out, err)
    if code:
        assert f"exitcode  : {code} " in err, err
    return out, err


def alone(*words):
    done = subprocess.run([sys.executable, "-m", "diffmd_fast", *map(str, words)], capture_output=True, text=True,
                          env=ENVIRONMENT, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def said(err):
    """What our processes wrote to stderr, among torchrun's own report."""
    return [line for line in err.splitlines() if " (process " in line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of five atoms, frames to start from, and snapshots of butane to train on."""
    path = tmp_path_factory.mktemp("several")
    model = small_schnet()
    diffmd_fast.save_model(path / "model.safetensors", model) if False else diffmd_fast.save_model(
        model, path / "model.safetensors")
    return path
