"""The temperature of a run, step by step."""

import numpy as np
import pytest

from diffmd_fast import InputError
from diffmd_fast.sampling import Schedule


def test_a_number_is_constant():
    schedule = Schedule(350)
    assert schedule.constant and schedule.value == 350.0 and schedule.json == 350.0 and str(schedule) == "350 K"
    np.testing.assert_array_equal(schedule.at([0, 10**9]), [350.0, 350.0])


def test_straight_lines_between_points():
    schedule = Schedule([(10, 900.0), (20, 300.0), (40, 310.0)])
    np.testing.assert_allclose(schedule.at([0, 10, 15, 20, 30, 40, 99]), [900, 900, 600, 300, 305, 310, 310])
    assert not schedule.constant and schedule.json == [[10, 900.0], [20, 300.0], [40, 310.0]]
    assert Schedule(schedule.json).value == schedule.value == Schedule(np.array(schedule.json)).value
    assert "900 K at step 10" in str(schedule)


@pytest.mark.parametrize("bad", [None, "hot", [], [(1, 2, 3)], [(0, float("nan"))], [(-1, 300.0)], [(5, 1.0), (2, 1.0)],
                                 float("inf"), 0, {}, [300.0, 310.0]])
def test_bad_values_are_one_error(bad):
    with pytest.raises(InputError, match="^temperature: expected "):
        Schedule(bad)
