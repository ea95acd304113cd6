import numpy as np
import pytest

from diffmd_fast.models import TraPPEAlkane, save_model

from .butane import BUTANE, small_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Butane frames, their true forces, files with defects, and a small model that was not trained."""
    path, butane = tmp_path_factory.mktemp("butane"), TraPPEAlkane.butane()
    positions = butane.sample(120, seed=2).float()
    save_model(path / "model.safetensors", small_model(positions))
    np.savez(path / "frames.npz", positions=positions.numpy(), temperature=300.0, **BUTANE)
    np.savez(path / "forces.npz", forces=(butane.score(positions) * butane.kilojoules).numpy())
    np.savez(path / "few.npz", forces=np.zeros((3, 4, 3)))
    np.savez(path / "none.npz", force=np.zeros((120, 4, 3)))
    return path
