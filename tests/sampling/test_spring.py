"""Spring: two ways to say one thing, and what it refuses."""

import numpy as np
import pytest
import torch

from diffmd_fast import InputError
from diffmd_fast.sampling import Spring


def test_time_step_and_stiffness_are_each_other():
    spring = Spring.from_time_step(1e-3, 0.002)
    assert spring.stiffness == pytest.approx(1 / (2 * 0.002 * 1e-3), rel=1e-15)
    assert spring.diffusion_time == pytest.approx(2e-6, rel=1e-15)
    back = Spring.from_stiffness(spring.stiffness, 0.002)
    assert back.time_step == pytest.approx(1e-3, rel=1e-15)
    assert Spring(stiffness=spring.stiffness, diffusion=0.002) == back


def test_force_constant_is_kT_times_stiffness():
    # 1 kT at 300 K is 2.494339 kJ/mol (data/README.md)
    assert Spring.from_stiffness(1000.0, 1.0).force_constant(300) == pytest.approx(2494.339, rel=1e-6)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_diffusion_per_atom_gives_stiffness_per_atom(kind):
    spring = Spring.from_time_step(0.5, kind([1.0, 2.0]))
    assert spring.stiffness == (1.0, 0.5) and spring.diffusion_time == (0.5, 1.0)
    assert Spring.from_stiffness(kind([1.0, 0.5]), kind([1.0, 2.0])).time_step == 0.5


def test_prints_both_ways_with_units():
    text = str(Spring.from_time_step(1e-3, 0.002))
    assert "0.001 ps" in text and "250000 1/nm^2" in text and "0.002 nm^2/ps" in text


@pytest.mark.parametrize(
    "arguments, name",
    [
        ({"time_step": 0.0, "diffusion": 1.0}, "time_step"),
        ({"time_step": -1e-3, "diffusion": 1.0}, "time_step"),
        ({"time_step": float("nan"), "diffusion": 1.0}, "time_step"),
        ({"time_step": 1e-3, "diffusion": 0.0}, "diffusion"),
        ({"time_step": 1e-3, "diffusion": []}, "diffusion"),
        ({"time_step": 1e-3, "diffusion": "fast"}, "diffusion"),
        ({"stiffness": -5.0, "diffusion": 1.0}, "stiffness"),
        ({"stiffness": [1.0, 2.0], "diffusion": [1.0, 2.0, 3.0]}, "stiffness"),
        ({"stiffness": 1.0, "diffusion": [1.0, 2.0]}, "stiffness"),
        ({"time_step": 1e-3, "stiffness": 1.0, "diffusion": 1.0}, "time_step"),
        ({"diffusion": 1.0}, "time_step"),
        ({"time_step": 1e-300, "diffusion": 1e-300}, "time_step"),
    ],
)
def test_bad_input(arguments, name):
    with pytest.raises(InputError, match=rf"^{name}: expected [^\n]*$"):
        Spring(**arguments)
