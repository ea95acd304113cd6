"""From shuffled snapshots to a learned energy: denoising score matching."""

from .denoising import denoising_loss, draw_noise_levels
from .preparation import prepare_model
from .trainer import Settings, train, training_state_path

__all__ = ["Settings", "denoising_loss", "draw_noise_levels", "prepare_model", "train", "training_state_path"]
