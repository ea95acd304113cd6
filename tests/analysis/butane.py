"""Butane with its exact force field, and a small network that was not trained on it."""

import numpy as np
import torch

from diffmd_fast.io import Molecule
from diffmd_fast.training.preparation import measure_support, prepare_model

BUTANE = dict(bonds=np.array([(0, 1), (1, 2), (2, 3)]), bead_types=np.array(["CH3", "CH2", "CH2", "CH3"]))


def butane_molecule():
    return Molecule.from_npz_arrays(BUTANE, 4)


def small_model(positions, n_blocks=1):
    """Springs and spread from the frames [frames, 4, 3]; the network's parameters as they are drawn."""
    torch.manual_seed(0)
    model = prepare_model(
        positions, butane_molecule(), 300.0, n_features=16, n_blocks=n_blocks, cutoff=1.0, noise_levels=(0.002, 0.5)
    )
    model.support = measure_support(model, positions)
    return model
