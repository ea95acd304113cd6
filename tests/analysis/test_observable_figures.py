"""Figures of observables: written, of the size asked for, and never half checked."""

import matplotlib.image
import numpy as np
import pytest

from diffmd_fast.analysis import (
    correlation_matrix,
    dihedral_free_energy_profile,
    dihedral_free_energy_surface,
    free_energy_surface_figure,
    implied_timescales,
    matrix_figure,
    profile_figure,
    radius_of_gyration,
    scalar_figure,
    timescales_figure,
)
from diffmd_fast.analysis.observable_figures import draw_matrix
from diffmd_fast.errors import InputError

from .chains import ornstein_uhlenbeck

RNG = np.random.default_rng(0)
FRAMES = RNG.standard_normal((120, 5, 3)) * 0.1 + np.arange(5)[:, None]
CHAIN = ornstein_uhlenbeck(RNG, 9, 200, 0.8, 2)


@pytest.mark.parametrize(
    ("draw", "width"),
    [
        (lambda path: scalar_figure(path, [radius_of_gyration(FRAMES)], "radius of gyration (nm)", 0.5), 1440),
        (lambda path: scalar_figure(path, [np.ones(3)], "constant", None, [np.ones(2)]), 1440),
        (lambda path: matrix_figure(path, correlation_matrix(FRAMES), "correlation", 0.5), 720),
        (lambda path: matrix_figure(path, np.ones((1, 1)), "correlation"), 720),
        (lambda path: timescales_figure(path, implied_timescales(list(CHAIN), [1, 2, 5], 0.1, 2)), 810),
        (lambda path: free_energy_surface_figure(path, dihedral_free_energy_surface(list(CHAIN), 24)), 1260),
        (lambda path: profile_figure(path, dihedral_free_energy_profile(list(CHAIN[:, :, 0])), "φ", 57.3), 810),
    ],
)
def test_a_picture_is_written(tmp_path, draw, width):
    draw(tmp_path / "a.png")
    image = matplotlib.image.imread(tmp_path / "a.png")
    assert image.shape[1] == width and image[..., :3].std() > 0.05


def test_large_matrices_are_thinned():
    from matplotlib.figure import Figure

    image = draw_matrix(Figure().subplots(), np.zeros((2500, 2500)), 0.2)
    assert image.get_array().shape == (834, 834) and image.get_extent() == [0, 500, 0, 500]


def test_bad_input(tmp_path):
    for call, start in (
        (lambda: scalar_figure(tmp_path / "no" / "a.png", [np.ones(3)], "x"), "path: expected"),
        (lambda: scalar_figure(tmp_path / "a.png", [], "x"), "values: expected"),
        (lambda: scalar_figure(tmp_path / "a.png", [np.ones(3)], "x", -1), "frame_interval: expected"),
        (lambda: matrix_figure(tmp_path / "a.png", np.ones((2, 3)), "x"), "matrix: expected"),
        (
            lambda: free_energy_surface_figure(tmp_path / "a.png", dihedral_free_energy_profile([np.ones(3)])),
            "surface: expected",
        ),
    ):
        with pytest.raises(InputError) as error:
            call()
        assert str(error.value).startswith(start)
    assert not list(tmp_path.iterdir())
