"""The training loop. It knows batches, time, checkpoints and the journal, and nothing of losses."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from atelier.config import Train
from atelier.errors import AtelierError, Terminated
from atelier.files import digest
from atelier.journal import Journal
from atelier.pictures import sheet_name
from atelier.ranks import Agreement, Ranks, Reading
from atelier.training import checkpoints
from atelier.training.batches import TrainingImages
from atelier.training.checkpoints import JOURNAL, PICTURES, TIMING, Checkpoint
from atelier.training.method import Method
from atelier.training.steps import choose_steps

if TYPE_CHECKING:
    from atelier.training.validation import Validation

TERMINATED = "SIGTERM: checkpoint saved; the same command goes on from it"


@dataclass
class Position:
    """Where training is. `images` counts real images seen; seconds are of training, over all its sessions."""

    images: int = 0
    step: int = 0
    tick_step: int = 0  # the step at which the present tick began
    pictured: int = 0  # images seen when the last picture was drawn
    seconds: float = 0.0


@dataclass(frozen=True)
class Tick:
    """A line of the journal to be."""

    images: int
    step: int
    steps: int  # in it
    sums: Reading

    def figures(self) -> dict[str, float]:
        """The means over its steps."""
        return {name: value / self.steps for name, value in self.sums.figures().items()}


def train_loop(
    method: Method,
    data: TrainingImages,
    folder: Path,  # journal, checkpoints and pictures go here
    ranks: Ranks,
    *,
    start_from: Checkpoint | None,  # None: at zero
    identity: dict[str, Any],  # of this training, for its checkpoints; as is `environment`
    environment: dict[str, Any],
    kimg: float,
    batch: int,  # over all ranks
    settings: Train,
    validation: Validation | None = None,
    draw_picture: Callable[[Path], None],
    progress: Callable[[int, float, dict[str, float]], None],  # told images seen, images a second, figures; once a tick
    say: Callable[[str], None],
    on_tick: Callable[[dict[str, float]], None] | None = None,  # told the line of the journal and its times
) -> None:
    """Train until `kimg` thousand images were seen, or validation says to stop.

    Raises:
        AtelierError: if a figure is no longer finite, or a checkpoint cannot be written.
        Terminated: after SIGTERM to any rank, once the checkpoint is safe.
    """
    total = max(math.ceil(kimg * 1000 / batch), 1) * batch
    tick = settings.tick_kimg * 1000
    position, tick_start = Position(), 0.0
    ended: Tick | None = None  # one whose figures are on their way
    steps = choose_steps(method, data, ranks, batch, settings.cuda_graph, say)
    journal, timing = Journal(folder / JOURNAL), Journal(folder / TIMING)
    pictures = folder / PICTURES
    drawn = dict[str, str]()  # the digest of each picture, which stays as it is

    def save_checkpoint() -> None:
        sums = steps.sums if position.step > position.tick_step else {}
        if sums:
            _refuse_not_finite(ranks.mean(sums).figures(), position.images, folder)
        position.seconds = seconds_before + time.monotonic() - start
        of_ranks = ranks.gather({"sums": sums} | _random_states(ranks.device))

        def save() -> None:
            lengths = {JOURNAL: journal.bytes(), TIMING: timing.bytes()}
            drawn.update({n: digest(folder / n) for n in _names_in(pictures) if n not in drawn})
            checkpoint = Checkpoint(
                identity=identity,
                environment=environment,
                threads=torch.get_num_threads(),
                method=method.state_dict(),
                position=vars(position),
                ranks=of_ranks,
                validation=vars(validation.progress) if validation else None,
                journal_bytes=lengths[JOURNAL],
                timing_bytes=lengths[TIMING],
                sha256=drawn | {name: checkpoints.sha256_of(folder / name, was) for name, was in lengths.items()},
            )
            checkpoints.save(folder, position.images, checkpoint, settings.checkpoints_kept)

        ranks.by_writer(save)

    def end_tick(tick: Tick) -> None:
        nonlocal tick_start
        figures = tick.figures()
        _refuse_not_finite(figures, tick.images, folder)
        now = time.monotonic()
        rate = tick.steps * batch / (now - tick_start)
        position.seconds = seconds_before + now - start
        tick_start = now
        if ranks.is_writer:
            where = {"kimg": tick.images / 1000}
            # the time first: whoever reads a line of the journal finds when it was written
            times = {"unix": time.time(), "seconds": position.seconds, "images_per_second": rate}
            timing.append(where | times | ({"validation_seconds": validation.progress.seconds} if validation else {}))
            line = where | {"step": tick.step} | figures | (validation.figures() if validation else {})
            journal.append(line)
            progress(tick.images, rate, figures)
            if on_tick is not None:
                on_tick(times | line)

    def is_over() -> bool:
        return position.images >= total or (validation is not None and validation.progress.stopped != "")

    ranks.average_gradients(method.optimizers())
    if start_from is not None:
        position, steps.sums = _go_on(method, start_from, validation, ranks, folder)
    elif validation is not None:
        validation.measure(0, {})
    if ranks.is_writer:
        pictures.mkdir(exist_ok=True)
        if start_from is not None:
            for name in set(_names_in(pictures)) - start_from.sha256.keys():
                (folder / name).unlink()  # drawn after the checkpoint, and perhaps cut by a kill
        journal.truncate(start_from.journal_bytes if start_from else 0)
        timing.truncate(start_from.timing_bytes if start_from else 0)
        if start_from is None:
            draw_picture(pictures / sheet_name(0))
        progress(position.images, 0.0, {})

    agreement = Agreement(ranks)
    seconds_before = position.seconds
    start = last_save = tick_start = time.monotonic()
    with _sigterm() as terminated, steps.running():
        while not is_over():
            steps.take(position.images)
            position.images += batch
            position.step += 1

            done = position.images >= total
            if done or position.images // tick > (position.images - batch) // tick:
                if ended is not None:
                    end_tick(ended)
                ended = Tick(position.images, position.step, position.step - position.tick_step, ranks.mean(steps.sums))
                steps.clear()
                position.tick_step = position.step
                if validation is not None and (done or validation.is_due(position.images)):
                    validation.measure(position.images, ended.figures())
                    done = is_over()
                    end_tick(ended)
                    ended = None
                if position.images * settings.pictures // total > position.pictured * settings.pictures // total:
                    position.pictured = position.images
                    if ended is not None:
                        end_tick(ended)
                        ended = None
                    if ranks.is_writer:
                        draw_picture(pictures / sheet_name(position.images))

            save_due = ranks.is_writer and time.monotonic() - last_save >= settings.checkpoint_seconds
            stop, save = agreement.ask(terminated(), save_due)
            if ended is not None and (done or stop or save or ended.sums.arrived):
                end_tick(ended)
                ended = None
            if not done and (stop or save):
                save_checkpoint()
                last_save = time.monotonic()
            if not done and stop:
                agreement.close()
                raise Terminated(TERMINATED)
        agreement.close()
        save_checkpoint()
        if validation is not None:
            say(f"validation took {validation.progress.seconds / position.seconds:.1%} of the time")
        if terminated():
            raise Terminated(TERMINATED)


def _names_in(pictures: Path) -> list[str]:
    return sorted(f"{PICTURES}/{path.name}" for path in pictures.iterdir() if path.is_file())


def _go_on(
    method: Method, checkpoint: Checkpoint, validation: Validation | None, ranks: Ranks, folder: Path
) -> tuple[Position, dict[str, Tensor]]:
    """Put everything back as it was at a checkpoint, but for the files."""
    try:
        method.load_state_dict(checkpoint.method)
        if validation is not None:
            validation.take_up(checkpoint.validation or {})
        position = Position(**{name: type(was)(checkpoint.position[name]) for name, was in vars(Position()).items()})
        mine = checkpoint.ranks[ranks.rank]
        sums = {name: value.to(ranks.device) for name, value in mine["sums"].items()}
        _set_random_states(mine, ranks.device)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise AtelierError(
            f"{folder}: the checkpoint does not fit the model ({' '.join(str(error).split())[:120]}); "
            "remove that folder to train anew"
        ) from None
    return position, sums


def _refuse_not_finite(figures: dict[str, float], images: int, folder: Path) -> None:
    bad = [name for name, value in figures.items() if not math.isfinite(value)]
    if bad:
        raise AtelierError(
            f"{bad[0]} is not finite at {images / 1000:g} kimg; {checkpoints.last_good(folder)}; "
            "lower the learning rate, or set precision: fp32"
        )


def _random_states(device: torch.device) -> dict[str, Tensor]:
    """torch's own generators, which layers such as dropout draw from."""
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def _set_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


@contextmanager
def _sigterm() -> Iterator[Callable[[], bool]]:
    """Within it, SIGTERM is only noted, to be looked at between steps; after it, SIGTERM ends the process again.

    After an error it stays noted: the process is ending, and torchrun sends SIGTERM to all once the first rank did.
    """
    received = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = True

    before = signal.signal(signal.SIGTERM, note)
    yield lambda: received
    signal.signal(signal.SIGTERM, before)
