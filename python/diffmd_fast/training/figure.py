"""The loss figure of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def loss_figure(history: list[dict[str, Any]], path: str | Path) -> None:
    """Held-out loss over the steps, and per noise level at the end, as one PNG; with a force field, how far the score
    is from what it tells."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    levels = [float(level) for level in history[-1]["held_out_loss_per_noise_level"]]
    steps = [record["step"] for record in history]
    left.plot(steps, [record["held_out_loss"] for record in history], color="#1f4e79", label="held out, mean")
    left.plot(steps, [record["loss"] for record in history], color="#b0b0b0", lw=0.8, zorder=0,
              label="training batch")
    left.set(xlabel="step", ylabel="denoising loss per degree of freedom")
    left.legend(frameon=False)
    spines = ["top", "right"]
    if "held_out_force_field" in history[-1]:
        followed, spines = left.twinx(), ["top"]
        followed.plot(steps, [100 * record["held_out_force_field"] ** 0.5 for record in history], color="#c55a11")
        followed.set_ylabel("score off the force field's, held out (%)", color="#c55a11")
        followed.set_ylim(0, None)
        followed.spines["top"].set_visible(False)
    for record, shade in ((history[0], "#b0c4de"), (history[-1], "#1f4e79")):
        right.semilogx(levels, list(record["held_out_loss_per_noise_level"].values()), "o-", color=shade, ms=4,
                       label=f"step {record['step']}")
    right.set(xlabel="noise level σ (nm)", ylabel="held-out loss", ylim=(0, None))
    right.legend(frameon=False)
    left.spines[spines].set_visible(False)
    right.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
