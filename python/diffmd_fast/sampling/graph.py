"""The loop of a run as a CUDA graph: the whole step captured once, and replayed without the host in between.

Where the positions are on the CPU, :class:`GraphRun` calls the same step instead of replaying it.  The sampler never
chooses that; the tests do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..backend import current_backend, say_once, unavailable
from ..errors import UnavailableError
from ..interrupt import Interrupt
from ..models.schnet import SchNet
from ..models.static import StaticSchNet
from . import resident
from .captured_step import CapturedStep
from .loop import Run
from .resident import ResidentRun

if TYPE_CHECKING:
    from .sampler import Sampler

STEPS_A_VISIT = 4096  # at most: the temperature of each is on the device before the visit
WARM_UP = 3  # steps before a capture: kernels are compiled, and torch's libraries take their memory


def why_not_graph() -> str | None:
    """Why the step of a run on a GPU is not captured in a CUDA graph, or None where that is tried."""
    if current_backend() not in ("auto", "triton"):
        return f'the backend is "{current_backend()}"'
    return unavailable("triton")


def graph_loop(why_not_resident: str) -> tuple[type[GraphRun], str]:
    """The class that runs it, and what to say of it."""
    say_once(f"graph:{why_not_resident}", "resident: the loop in the GPU's shared memory does not serve this run "
             f"({why_not_resident}); the whole step is replayed as a CUDA graph instead")
    return GraphRun, "loop on the GPU, the step replayed as a CUDA graph"


class GraphRun(ResidentRun):
    """A run whose steps are replayed from one CUDA graph; the host comes by about four times a second.

    A :class:`SchNet` is evaluated by :class:`StaticSchNet`, any other model as it is.  A model that cannot be captured
    runs step by step, which is said once (:class:`UnavailableError` with ``resident=True``).  Where a neighbor list
    outgrows its memory, the host gives it more, captures anew, and the steps since it came by are made again: the
    trajectory is the same.
    """

    _whole = False
    _lists: tuple = ()

    def _prepare(self, sampler: Sampler) -> None:
        self._model, self._noise_level, self._only_resident = sampler.model, sampler.noise_level, sampler.resident

    def advance(self, n_steps: int, save_every: int, check_every: int, interrupt: Interrupt,
                first_is_saved: bool) -> None:
        try:
            self._make_step(n_steps, save_every, check_every)
        except Exception as error:  # whatever the model, or torch in its name, raises
            reason = (f"{type(self._model).__name__}: its step cannot be captured in a CUDA graph "
                      f"({type(error).__name__}: {_first_line(error)})")
            if self._only_resident:
                raise UnavailableError(f"resident: {reason}") from error
            say_once(f"graph:{type(self._model).__qualname__}", f"{reason}; running step by step")
            Run.advance(self, n_steps, save_every, check_every, interrupt, first_is_saved)
            return
        self._bar.note(str(self))
        super().advance(n_steps, save_every, check_every, interrupt, first_is_saved)

    @torch.no_grad()
    def _make_step(self, n_steps: int, save_every: int, check_every: int) -> None:
        evaluates = [self._evaluate] * len(self._parts)
        if isinstance(self._model, SchNet):
            evaluates = [StaticSchNet(self._model, self._noise_level, part.positions) for part in self._parts]
            self._lists = tuple(each.list for each in evaluates if each.list is not None)
        frame_bytes = self.positions.numel() * self.positions.element_size()
        n_frames = max(1, min(resident.MAX_FRAME_BYTES // frame_bytes, min(STEPS_A_VISIT, n_steps) // save_every + 1))
        self._captured = CapturedStep(self, evaluates, save_every, check_every, n_steps, STEPS_A_VISIT, n_frames)
        self._lost_positions = self._captured.lost_positions
        self._evaluates_bytes = sum(each.nbytes for each in evaluates if isinstance(each, StaticSchNet))
        self._captured.evaluate()
        self._replay = self._capture()

    def _begin(self) -> None:
        """Energy and score are there already."""

    def _most_steps(self, save_every: int) -> int:
        return min(STEPS_A_VISIT, super()._most_steps(save_every))

    def _call(self, end: int, last: int, save_every: int, check_every: int) -> None:
        step = self._captured
        step.begin(self.step, self._variance(self.step, end), self.alive)
        before = [tensor.clone() for tensor in step.state]
        self._replay_to(end)
        while any([each.overflows() for each in self._lists]):
            for each in self._lists:
                each.fit()
            _restore(step.state, before)
            self._replay = self._capture()
            self._replay_to(end)
        steps = [s * save_every for s in range(self.step // save_every + 1, end // save_every + 1)]
        nothing = [None] * len(steps)
        self._take(end, *step.losses(), zip(steps, step.frames, step.frame_energies if step.frame_energies is not None
                                            else nothing, nothing if self.velocities is None else
                                            step.frame_velocities))

    def _replay_to(self, end: int) -> None:
        for _ in range(end - self.step):
            self._replay()

    def _capture(self) -> Callable[[], None]:
        """What makes one step; the state is what it was before, also where that fails."""
        before = [tensor.clone() for tensor in self._captured.state]
        try:
            return self._record()
        finally:
            _restore(self._captured.state, before)

    def _record(self) -> Callable[[], None]:
        if self.positions.device.type != "cuda":
            return self._captured
        with torch.cuda.device(self.positions.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    self._captured()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._captured()
        return graph.replay

    def __str__(self) -> str:
        """What the static buffers take; torch keeps what the step needs meanwhile in the graph's own pool besides."""
        return (f"CUDA graph: {(self._captured.nbytes + self._evaluates_bytes) / 1e6:.1f} MB in static buffers, of "
                f"which features and lists {self._evaluates_bytes / 1e6:.1f}, frames "
                f"{self._captured.frames.nbytes / 1e6:.1f}")


def _restore(state: list[Tensor], before: list[Tensor]) -> None:
    for tensor, value in zip(state, before):
        tensor.copy_(value)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
