"""What holds for tables of launch options wherever kernels run; see triton_em_step_checks.py."""

import importlib
import json

import pytest
import torch

from diffmd_fast import InputError

from ..ops.test_neighbor_list import NO_BOX
from .common import DEVICE, on_triton

tuning = importlib.import_module("diffmd_fast.kernels.triton.tuning")
CASES = {}
for kernel, call in tuning.cases(torch.device(DEVICE), 130):
    CASES.setdefault(kernel, call)  # one shape class of each: the interpreter is slow


def results(call):
    found = call()
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("kernel", tuning.CANDIDATES)
def test_results_do_not_depend_on_the_options(kernel):
    """To the bit, but for spline_conv, where the order of a sum is that of the tiles."""
    found = []
    for options in (tuning.CANDIDATES[kernel][0], tuning.CANDIDATES[kernel][-1]):
        with tuning.forced(kernel, options):
            found.append(results(CASES[kernel]))
    assert sum(t.numel() for t in found[0]) > 0
    for a, b in zip(*found):
        if kernel.startswith("spline_conv"):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6 * b.abs().max().item() if b.numel() else 0)
        else:
            assert torch.equal(a, b)


def test_defaults_are_among_the_candidates():
    def of(name):
        return importlib.import_module(f"diffmd_fast.kernels.triton.{name}")

    block = {"BLOCK": of("torsions").BLOCK}
    sizes = {"em_step": {"BLOCK": of("em_step").BLOCK}, "torsions": block, "torsions_gradient": block,
             "neighbor_pairs": {"PAIRS": of("neighbor_list").PAIRS},
             "neighbor_cells": {"ROWS": of("neighbor_cells").ROWS, "COLUMNS": of("neighbor_cells").COLUMNS}}
    for step in ("forward", "backward", "double_backward", "coefficients"):
        sizes[f"spline_conv_{step}"] = {"NUMBERS": getattr(of("spline_conv"), step.upper())}
    assert sizes.keys() == tuning.CANDIDATES.keys() == CASES.keys()
    for kernel, size in sizes.items():
        assert size | {"num_warps": 4} in tuning.CANDIDATES[kernel]


def test_options_reach_whole_operators(rng):
    """Rows that are filled, too."""
    x = torch.rand(1, 14, 3, generator=rng, dtype=torch.float64).to(DEVICE)
    for kernel, method in (("neighbor_pairs", "brute_force"), ("neighbor_cells", "cell_list")):
        lists = []
        for options in ({}, tuning.CANDIDATES[kernel][0]):
            with tuning.forced(kernel, options):
                lists.append(on_triton(torch.ops.diffmd_fast.neighbor_list, x, NO_BOX.to(DEVICE), 0.5, method))
        assert all(torch.equal(a, b) for a, b in zip(*lists))


def test_the_fastest_is_chosen_and_a_tie_is_not():
    """Times are counted here, by what would be a clock elsewhere: the options that are in force at a call."""
    first, *_, last = tuning.CANDIDATES["em_step"]
    for times, chosen in (({str(last): 1.0, str(first): 2.0}, last), ({str(last): 9.9}, None)):
        def measure(call, times=times):
            call()
            return times.get(str(tuning.tuned("em_step", "torch.float32", torch.device("cpu"))), 10.0)

        table, found = tuning.tune(measure, [("em_step", CASES["em_step"])])
        assert table == ({"em_step": {"torch.float32": chosen}} if chosen else {})
        assert found == {"em_step, torch.float32": (10.0, min(times.values()))}


def test_tables_are_read_and_bad_ones_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    path = tuning.path_of("NVIDIA H100 80GB HBM3")
    assert path.name == "nvidia_h100_80gb_hbm3.json"
    options = tuning.CANDIDATES["neighbor_cells"][0]
    path.write_text(json.dumps({"kernels": {"neighbor_cells": {"": options}}}))
    assert tuning._table("NVIDIA H100 80GB HBM3") == {"neighbor_cells": {"": options}}
    assert tuning._table("another card") == {}
    for text in ("{", "[]", "{}", '{"kernels": {"em_step": {"torch.float32": {"BLOCK": 7}}}}',
                 '{"kernels": {"unknown": {"": {}}}}', '{"kernels": 3}'):
        path.write_text(text)
        with pytest.raises(InputError, match=f"{path.name}: expected launch options .* got") as error:
            tuning.read_table(path)
        assert "\n" not in str(error.value)


def test_shipped_tables_can_be_read():
    for path in sorted(tuning.FOLDER.glob("*.json")):
        card = json.loads(path.read_text())["card"]
        assert tuning.path_of(card).name == path.name and tuning.read_table(path) is not None


@pytest.mark.skipif(DEVICE == "cuda", reason="it would measure for minutes, and write a table")
def test_the_command_says_why_it_cannot_measure(capsys):
    assert tuning.main() == 2
    assert capsys.readouterr().err == "tuning needs a GPU to measure on: TRITON_INTERPRET=1 is set\n"
