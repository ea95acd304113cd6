"""The training loop: resumable to the bit, best checkpoint kept, held-out loss per noise level."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, NonFiniteError, check_folder, check_integer, check_number, require
from ..interrupt import Interrupt
from ..io import Molecule, Snapshots
from ..models import SchNet
from ..models.checkpoint import load_model, save_model
from ..models.schnet import MAX_HARMONICS
from ..processes import Processes
from .calibration import MOST_PAIRS, calibrate_series
from .contrast import Moves, contrastive_loss
from .denoising import Batch, denoising_error, draw_batch, draw_noise, energy_and_score, noised, relative_error
from .ensemble import FRAMES_A_CHANGE, MOST_CHANGES, match_ensemble
from .force_field import ForceField
from .preparation import centred, check_bonds, measure_support, prepare_model


@dataclass(frozen=True)
class Settings:
    """How a model is trained; the defaults suit a small molecule.  Written into the model file.

    Attributes:
        n_steps: optimizer steps.
        batch_size: frames a step, over all processes.
        learning_rate: of Adam, after a linear warm-up; falls to 1% along a cosine.
        warm_up: steps.
        ema_decay: of the exponential moving average of the parameters, which is what runs.
        noise_levels: (smallest, largest) sigma in nm.
        torsion_fade: nm; noise level above which torsions fade from the energy (:class:`SchNet`).
        n_harmonics: of the Fourier series of every torsion beside the network (:class:`SchNet`); 0 for none.
        contrast: weight of the contrastive loss (training/contrast.py), which ties the energies of basins to each
            other across barriers where there are no frames, and calibrates the series of torsions at the end
            (training/calibration.py, training/ensemble.py); 0 leaves both out.  It needs torsions.
        force_field: weight of how far the score is, relative to it, from that of a classical force field at the
            smallest noise level, where runs take place; half of each batch is frames for it.  It is fitted to the
            snapshots, too (training/force_field.py): for molecules of up to some 30 atoms.  30 suits; 0: without.
        n_features, n_blocks, cutoff: of the SchNet; cutoff in nm.
        held_out: share of the frames kept for validation, where the snapshots bring none of their own.
        validate_every: steps between validations; the best one is the model file.
        max_seconds: stop the run after this time (0: no limit); the learning rate then falls by the clock.
        seed: of parameters, batches and noise.
    """

    n_steps: int = 20000
    batch_size: int = 256
    learning_rate: float = 2e-3
    warm_up: int = 200
    ema_decay: float = 0.999
    noise_levels: tuple[float, float] = (0.002, 0.5)
    torsion_fade: float = 0.06
    n_harmonics: int = 6
    contrast: float = 1.0
    force_field: float = 0.0
    n_features: int = 64
    n_blocks: int = 3
    cutoff: float = 1.0
    held_out: float = 0.1
    validate_every: int = 500
    max_seconds: float = 0.0
    seed: int = 0

    def __post_init__(self):
        for name, maximum in (("n_steps", 2**32 - 1), ("batch_size", 2**24), ("n_features", 4096), ("n_blocks", 64),
                              ("validate_every", 2**32 - 1)):
            check_integer(getattr(self, name), name, minimum=1, maximum=maximum)
        check_integer(self.n_harmonics, "n_harmonics", minimum=0, maximum=MAX_HARMONICS)
        for name in ("warm_up", "seed"):  # seed and step make the 64 bits that batches and noise are drawn from
            check_integer(getattr(self, name), name, minimum=0, maximum=2**32 - 1)
        check_number(self.learning_rate, "learning_rate", above=0)
        check_number(self.max_seconds, "max_seconds", minimum=0, unit="s")
        check_number(self.contrast, "contrast", minimum=0)
        check_number(self.force_field, "force_field", minimum=0)
        require(not self.force_field or self.batch_size >= 2, "batch_size", "at least 2 with a force field",
                self.batch_size)
        check_number(self.torsion_fade, "torsion_fade", above=0, unit="nm")
        check_number(self.cutoff, "cutoff", above=0, unit="nm")
        require(0 <= self.ema_decay < 1, "ema_decay", "a number in [0, 1)", self.ema_decay)
        require(0 < self.held_out < 1, "held_out", "a share in (0, 1)", self.held_out)


@dataclass
class State:
    """All that changes while training, and all that a resumed run needs.

    ``before`` has the training record of the model that training began with.
    """

    model: SchNet
    average: SchNet
    optimizer: torch.optim.Adam
    moves: Moves | None
    force_field: ForceField | None
    before: dict[str, Any]
    step: int = 0
    seconds: float = 0.0
    best: float = math.inf
    history: list[dict[str, Any]] | None = None


def train(snapshots: Snapshots, out: str | Path, temperature: float | None = None, settings: Settings | None = None,
          *, start: str | Path | None = None, resume: bool = False, progress: bool = True, figure: bool = True,
          on_validation: Callable[[dict[str, Any]], None] | None = None,
          processes: Processes | None = None) -> SchNet:
    """Train a SchNet on snapshots and write the best model to ``out``.

    Args:
        snapshots: positions [frames, atoms, 3] nm with their molecule; ``valid_positions`` are used for validation
            where there are any, else a share of the frames is held out.
        out: model file (.safetensors); one that exists is replaced at the first validation.  ``out`` with
            ".training" appended holds the state for ``resume`` until the end; the figure is ``out`` with the suffix
            ".loss.png".
        temperature: T0 in K of the snapshots; None takes the one stored with them.
        settings: see :class:`Settings`.
        start: model file whose parameters, series and bonded terms training begins with, of the same molecule,
            temperature, sizes and noise levels (``torsion_fade`` and ``n_harmonics`` are the model's); None fits and
            draws them.
        resume: go on from the state that a stopped run left; the result is that of an uninterrupted run, bit for
            bit, unless max_seconds cuts it.  Ctrl-C or SIGTERM finishes the step, keeps the state and raises
            KeyboardInterrupt.
        progress: show a bar with loss and time left.
        figure: draw the loss at the end.
        on_validation: called with each validation's record (on process 0).
        processes: :func:`diffmd_fast.torchrun_processes`; every process calls with the same arguments, computes its
            share of each batch on its device, and is given the model.  Batches and noise are those of one process, so
            models agree to rounding; process 0 validates and writes.

    Returns:
        The best model (its moving average, with calibrated series), as :func:`diffmd_fast.load_model` would read it.

    Raises:
        InputError: bad snapshots, settings or paths, before anything is written.
        NonFiniteError: the loss became NaN, and the message names the step; or no force field can be fitted.
        ProcessFailed: another process ended; ``resume`` goes on from the last validation.
    """
    settings, processes = settings or Settings(), processes or Processes()
    require(settings.batch_size >= processes.size, "batch_size", f"a frame for each of the {processes.size} processes",
            settings.batch_size)
    out = Path(out)
    temperature = _temperature(snapshots, temperature)
    _check_out(out)
    processes.check_shared(out.parent, "out")
    state_path = training_state_path(out)
    train_frames, valid_frames = _split(snapshots, settings)
    require(start is None or Path(start).resolve() != out.resolve(), "start", "another file than out", repr(str(start)))
    model = None
    if start is not None:
        model = _model_to_start(Path(start), snapshots.molecule, temperature, settings)
        settings = replace(settings, torsion_fade=model.torsion_fade, n_harmonics=model.n_harmonics)
    state = _start(train_frames, snapshots.molecule, temperature, settings, processes.device, model)
    data = _fingerprint(snapshots, temperature, start)
    if resume:
        _load_state(state_path, state, settings, data)
        _check_resumed(out, state, settings)
    elif state.force_field is not None:
        state.force_field.fit(train_frames, settings.noise_levels[0], settings.seed, progress and processes.rank == 0)
    started = time.monotonic() - state.seconds
    # A step cut in half would leave parameters, their average and Adam's moments at different steps.
    with _bar(settings, state, progress and processes.rank == 0) as bar, Interrupt() as interrupt:
        while not _finished(state, settings):
            loss = _step(state, train_frames, settings, processes)
            state.step += 1
            state.seconds, stop = processes.agree(time.monotonic() - started, interrupt.asked)
            _show(bar, loss, state, settings)
            if state.step % settings.validate_every == 0 or _finished(state, settings):
                record = processes.first(partial(_keep_best, out, state, train_frames, valid_frames, settings, loss))
                if processes.rank == 0:
                    _save_state(state_path, state, settings, data)
                    if on_validation is not None:
                        on_validation(record)
            if stop and not _finished(state, settings):
                if processes.rank == 0:
                    _save_state(state_path, state, settings, data)
                raise KeyboardInterrupt(f"stopped after step {state.step}; the state is in {state_path}")
    processes.first(partial(_calibrate, out, state, train_frames, settings, processes.device, progress))
    model = load_model(out)
    if processes.rank == 0:
        if figure:
            from .figure import loss_figure

            loss_figure(state.history, out.with_suffix(".loss.png"))
        state_path.unlink(missing_ok=True)
    return model


def training_state_path(out: str | Path) -> Path:
    """``model.safetensors.training`` beside ``model.safetensors``."""
    return Path(f"{out}.training")


def _check_out(out: Path) -> None:
    require(out.suffix == ".safetensors", "out", "a file ending in .safetensors", repr(str(out)))
    require(not out.is_dir(), "out", "a file name", f"the folder {str(out)!r}")
    check_folder(out.parent, "out")


def _fingerprint(snapshots: Snapshots, temperature: float, start: str | Path | None = None) -> str:
    """A hash of what is trained on and from, so that a resumed training goes on with the same."""
    digest = hashlib.sha256(f"{temperature!r} {json.dumps(snapshots.molecule.to_dict())}".encode())
    for positions in (snapshots.positions, snapshots.valid_positions):
        if positions is not None:
            digest.update(torch.as_tensor(positions, dtype=torch.float32).contiguous().numpy().tobytes())
    if start is not None:
        digest.update(Path(start).read_bytes())
    return digest.hexdigest()


def _model_to_start(path: Path, molecule: Molecule, temperature: float, settings: Settings) -> SchNet:
    """The model that training begins with; refused where it is not of these snapshots and settings."""
    try:
        model = load_model(path)
    except InputError as error:  # which calls the file "path"
        raise InputError(f"start: {str(error).removeprefix('path: ')}") from error
    require(isinstance(model, SchNet), "start", "a SchNet", f"a {type(model).__name__} in {str(path)!r}")
    require(model.molecule == molecule, "start", "a model of the snapshots' molecule", f"another in {str(path)!r}")
    require(model.temperature == temperature, "start", f"a model of {temperature:g} K", f"{model.temperature:g} K")
    for name in ("n_features", "n_blocks", "cutoff", "noise_levels"):
        asked, found = getattr(settings, name), getattr(model, name)
        require(asked == found if name != "noise_levels" else tuple(asked) == tuple(found), name,
                f"{found}, which the model in {str(path)!r} has", asked)
    return model.train().requires_grad_()


def _check_resumed(out: Path, state: State, settings: Settings) -> None:
    require(state.step <= settings.n_steps, "n_steps", f"at least {state.step}, which the training has already",
            settings.n_steps)
    require(bool(state.history) or not _finished(state, settings), "max_seconds",
            f"more than the {state.seconds:.0f} s that the training has taken already", f"{settings.max_seconds:g} s")
    require(out.is_file() or not state.history, "out", "the model file of the stopped training",
            f"no file {str(out)!r}")


def _temperature(snapshots: Snapshots, temperature: float | None) -> float:
    value = snapshots.temperature if temperature is None else temperature
    require(value is not None, "temperature", "the temperature of the snapshots in K", "none, and the file names none")
    return check_number(value, "temperature", above=0, unit="K")


def _split(snapshots: Snapshots, settings: Settings) -> tuple[Tensor, Tensor]:
    require(snapshots.n_atoms >= 2, "snapshots", "at least 2 atoms (the energy knows nothing of one alone)",
            snapshots.n_atoms)
    positions = centred(torch.as_tensor(snapshots.positions, dtype=torch.float32))
    check_bonds(positions, snapshots.molecule)
    if snapshots.valid_positions is not None:
        return positions, centred(torch.as_tensor(snapshots.valid_positions, dtype=torch.float32))
    require(len(positions) >= 10, "snapshots", "at least 10 frames", len(positions))
    order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(settings.seed))
    n_valid = max(1, round(settings.held_out * len(positions)))
    return positions[order[n_valid:]], positions[order[:n_valid]]


def _start(frames: Tensor, molecule: Molecule, temperature: float, settings: Settings,
           device: torch.device, model: SchNet | None = None) -> State:
    torch.manual_seed(settings.seed)
    before = {} if model is None else {"start": model.training_record}
    if model is None:
        model = prepare_model(frames, molecule, temperature, n_features=settings.n_features, n_blocks=settings.n_blocks,
                              cutoff=settings.cutoff, noise_levels=settings.noise_levels,
                              torsion_fade=settings.torsion_fade, n_harmonics=settings.n_harmonics)
    model = model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), fused=True)
    # Without torsions the energy is the same for the mirror image, and no bond turns: nothing to compare.
    moves = Moves(molecule) if settings.contrast and model.torsions else None
    force_field = ForceField(molecule) if settings.force_field else None
    return State(model, deepcopy(model), optimizer, moves, force_field, before, history=[])


def _step(state: State, frames: Tensor, settings: Settings, processes: Processes) -> float:
    """One optimizer step.  Batch and noise are functions of (seed, step), so a resumed run draws the same, and each
    process the same as all others; it computes its share."""
    generator = torch.Generator().manual_seed((settings.seed << 32) + state.step)
    batch = draw_batch(frames, settings.batch_size, settings.batch_size // 2 if settings.force_field else 0,
                       settings.noise_levels, generator)
    drawn = slice(batch.n_drawn)
    moved = None if state.moves is None else state.moves(
        noised(batch.positions[drawn], batch.noise[drawn], batch.noise_level[drawn]), generator)
    loss = _loss(state, batch, moved, settings, processes)
    parameters = list(state.model.parameters())
    state.optimizer.zero_grad(set_to_none=True)
    # Only what the optimizer needs: without `inputs` the second derivative by the positions would be computed too.
    loss.backward(inputs=parameters)
    total = loss.detach().clone()
    processes.sum([total, *(parameter.grad for parameter in parameters if parameter.grad is not None)])
    if not math.isfinite(value := total.item()):
        raise NonFiniteError(f"loss: {value} at training step {state.step}; lower learning_rate "
                             f"({settings.learning_rate:g})")
    for group in state.optimizer.param_groups:
        group["lr"] = settings.learning_rate * _schedule(state, settings)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    state.optimizer.step()
    decay = min(settings.ema_decay, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        torch._foreach_lerp_(list(state.average.parameters()), parameters, 1 - decay)
    return value


def _loss(state: State, batch: Batch, moved: Tensor | None, settings: Settings, processes: Processes) -> Tensor:
    """What this process's share of the batch adds to the loss: the mean over frames of any noise level, with the
    contrast, and the mean over those that a force field tells the score of.  ``moved`` are the former, moved."""
    share, device = processes.share(len(batch.positions)), processes.device
    noise, levels = batch.noise[share], batch.noise_level[share]
    frames = noised(batch.positions[share], noise, levels)
    energy, score = energy_and_score(state.model, frames.to(device), levels.to(device))
    n = max(0, batch.n_drawn - share.start)  # of this share; they come first
    total = denoising_error(score[:n], noise[:n].to(device), levels[:n].to(device)).sum() / batch.n_drawn
    if moved is not None and n:
        contrast = contrastive_loss(energy[:n], state.model(moved[share].to(device), levels[:n].to(device)))
        total = total + settings.contrast * contrast.sum() / batch.n_drawn
    if state.force_field is not None:
        total = total + settings.force_field * _told(state, score[n:], frames[n:]).sum() / (
            len(batch.positions) - batch.n_drawn)
    return total


def _told(state: State, score: Tensor, frames: Tensor) -> Tensor:
    """How far the score is from what the force field tells, for each frame."""
    return relative_error(score, state.force_field(frames).to(score), state.force_field.square.to(score))


def _progress(state: State, settings: Settings) -> float:
    """0 at the start, 1 at the end, by steps or by the clock, whichever ends the run first."""
    done = state.step / settings.n_steps
    return max(done, state.seconds / settings.max_seconds) if settings.max_seconds else done


def _finished(state: State, settings: Settings) -> bool:
    return _progress(state, settings) >= 1


def _schedule(state: State, settings: Settings) -> float:
    warm = min(1.0, (state.step + 1) / max(settings.warm_up, 1))
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(_progress(state, settings), 1.0))))


def _keep_best(out: Path, state: State, train_frames: Tensor, valid_frames: Tensor, settings: Settings,
               loss: float) -> dict:
    """Validate; the best model so far becomes the model file."""
    record = _validate(state, train_frames, valid_frames, settings, loss)
    if (total := _total(record, settings)) < state.best:
        state.best = total
        _save(out, state.average, train_frames, {"settings": asdict(settings), "n_frames": len(train_frames),
                                                 "history": state.history} | state.before)
    return record


def _validate(state: State, train_frames: Tensor, valid_frames: Tensor, settings: Settings, loss: float) -> dict:
    """Held-out loss of the moving average at eight fixed noise levels, with the same noise each time."""
    generator, device = torch.Generator().manual_seed(settings.seed + 1), next(state.average.parameters()).device
    some = valid_frames[torch.randperm(len(valid_frames), generator=generator)[:512]]
    low, high = (math.log(level) for level in settings.noise_levels)
    per_level, contrast = {}, []
    for level in torch.exp(torch.linspace(low, high, 8)).tolist():
        values = []
        for x, noise in zip(some.split(256), draw_noise(some.shape, generator).split(256)):
            levels = x.new_full((len(x),), level)
            moved = None if state.moves is None else state.moves(noised(x, noise, levels), generator).to(device)
            noise, levels, x = noise.to(device), levels.to(device), noised(x, noise, levels).to(device)
            energy, score = energy_and_score(state.average, x, levels, create_graph=False)
            values.append(denoising_error(score, noise, levels))
            if moved is not None:
                with torch.no_grad():
                    contrast.append(contrastive_loss(energy, state.average(moved, levels)))
        per_level[f"{level:.4g}"] = torch.cat(values).mean().item()
    record = {"step": state.step, "seconds": round(state.seconds, 1), "loss": loss,
              "held_out_loss": sum(per_level.values()) / len(per_level), "held_out_loss_per_noise_level": per_level}
    if contrast:
        record["held_out_contrast"] = torch.cat(contrast).mean().item()
    if state.force_field is not None:
        levels = some.new_full((len(some),), settings.noise_levels[0])
        x = noised(some, draw_noise(some.shape, generator), levels)
        score = energy_and_score(state.average, x.to(device), levels.to(device), create_graph=False)[1]
        record["held_out_force_field"] = _told(state, score, x).mean().item()
    if not math.isfinite(_total(record, settings)):
        raise NonFiniteError(f"loss: held-out loss {record['held_out_loss']} at training step {state.step}; lower "
                             f"learning_rate ({settings.learning_rate:g})")
    state.history.append(record)
    return record


def _total(record: dict, settings: Settings) -> float:
    """What the best model has least of."""
    return (record["held_out_loss"] + settings.contrast * record.get("held_out_contrast", 0.0)
            + settings.force_field * record.get("held_out_force_field", 0.0))


def _save(out: Path, model: SchNet, frames: Tensor, record: dict[str, Any]) -> None:
    model.support = measure_support(model, frames)
    model.training_record = record
    save_model(out, model)


def _calibrate(out: Path, state: State, frames: Tensor, settings: Settings, device: torch.device,
               progress: bool) -> None:
    """The series of the best model once more, with its network as it is; the file is replaced when that is done."""
    model = load_model(out)
    record = model.training_record
    if state.moves is None or not model.n_harmonics or "calibrated" in record:  # killed after this, and resumed
        return
    before = model.torsion_series.clone()
    # A short training is not to wait for this; what it began with was trained, too.
    n_frames = settings.batch_size * (state.step + _steps(record.get("start", {})))
    calibrate_series(model.to(device), frames, min(MOST_PAIRS, n_frames), settings.seed, progress)
    match_ensemble(model, frames, min(MOST_CHANGES, 2 * n_frames // FRAMES_A_CHANGE), settings.seed, progress)
    change = (model.torsion_series.cpu() - before).abs().max().item()
    if change:  # not where no bond turns
        _save(out, model, frames, record | {"calibrated": change})


def _steps(record: dict[str, Any]) -> int:
    """Steps to the best model of a training's record, with those of the trainings it began with."""
    if not record.get("history"):
        return 0
    return record["history"][-1]["step"] + _steps(record.get("start", {}))


def _save_state(path: Path, state: State, settings: Settings, data: str) -> None:
    from safetensors.torch import save

    from ..io.sidecar import write_atomically

    tensors = {f"model.{k}": v for k, v in state.model.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in state.average.state_dict().items()}
    if state.force_field is not None:
        tensors |= {f"force_field.{k}": v for k, v in state.force_field.state_dict().items()}
    for i, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{i}.{k}": torch.as_tensor(v) for k, v in moments.items()}
    header = {"step": state.step, "seconds": state.seconds, "best": state.best, "history": state.history,
              "settings": asdict(settings), "data": data}
    write_atomically(path, save({k: v.contiguous() for k, v in tensors.items()}, {"state": json.dumps(header)}))


def _load_state(path: Path, state: State, settings: Settings, data: str) -> None:
    from safetensors import SafetensorError, safe_open

    require(path.is_file(), "resume", "the state of a stopped training beside the model file",
            f"no file {str(path)!r}")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        before = Settings(**{**header["settings"], "noise_levels": tuple(header["settings"]["noise_levels"])})
        changed = [k for k, v in asdict(before).items() if v != asdict(settings)[k] and k not in
                   ("n_steps", "max_seconds", "validate_every")]
        require(not changed, "resume", "the settings of the stopped training", f"other values of {', '.join(changed)}")
        require(header.get("data", data) == data, "resume",
                "the snapshots and the temperature, and the start, of the stopped training", "others")
        state.model.load_state_dict(_part(tensors, "model."))
        state.average.load_state_dict(_part(tensors, "average."))
        if state.force_field is not None:
            state.force_field.load_state_dict(_part(tensors, "force_field."))
        adam = state.optimizer.state_dict()
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(tensors, "adam.").items():
            index, key = name.split(".", 1)
            moments.setdefault(int(index), {})[key] = value
        adam["state"] = moments
        state.optimizer.load_state_dict(adam)
        state.step, state.seconds = int(header["step"]), float(header["seconds"])
        state.best, state.history = float(header["best"]), list(header["history"])
    except InputError:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"resume: expected a whole training state for these snapshots, got {str(path)!r} "
                         f"({(str(error) or type(error).__name__).splitlines()[0]})") from error


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _bar(settings: Settings, state: State, progress: bool):
    from tqdm import tqdm

    if settings.max_seconds:
        return tqdm(total=round(settings.max_seconds), initial=round(state.seconds), unit="s", desc="training",
                    mininterval=1, disable=not progress, bar_format="{l_bar}{bar}| {n:.0f}/{total} s{postfix}")
    return tqdm(total=settings.n_steps, initial=state.step, unit="step", desc="training", mininterval=1,
                disable=not progress)


def _show(bar, loss: float, state: State, settings: Settings) -> None:
    bar.update(max(0.0, min(state.seconds, settings.max_seconds) - bar.n) if settings.max_seconds else 1)
    if state.step % 20 == 0:
        held_out = f"{state.history[-1]['held_out_loss']:.4f}" if state.history else "-"
        bar.set_postfix_str(f"step {state.step}, loss {loss:.4f}, held out {held_out}", refresh=False)
