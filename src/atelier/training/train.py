"""The stage `train`: from prepared arrays to `models/RUN/` (weights, config, journal, pictures over time)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import atelier
from atelier.config import Params, Run
from atelier.config.records import DataCard, ModelConfig
from atelier.data.arrays import dvc_md5, open_split, prepared_folder, read_card, validation_places
from atelier.errors import AtelierError, InputError, Terminated, ToldByWriter
from atelier.files import digest_of, folder_digest, hold, read_limited, remove_folder, to_json, write_atomic
from atelier.journal import duration
from atelier.models.contract import build_checked_networks
from atelier.own_code import CARRIED, RECIPE, counted_digest, part_digests, part_sources, sources, sources_sha256
from atelier.pictures import sides
from atelier.ranks import RankLost, Ranks, join_ranks
from atelier.sampler import Sampler
from atelier.tracking import run_params
from atelier.tracking.feed import Feed
from atelier.training import build_method, checkpoints
from atelier.training.batches import TrainingImages
from atelier.training.checkpoints import FORMER_WORLD_SIZES, Checkpoint, environment, take_up
from atelier.training.layers import in_microbatches, synchronise
from atelier.training.loop import train_loop
from atelier.training.memory import refuse_too_large
from atelier.training.method import Autocast, Method
from atelier.training.parent import start_from
from atelier.training.publish import draw_picture, publish_best, publish_model, publish_record

MODEL = "model"  # of one of several seeds, beside its checkpoints
MLFLOW_WAIT_SECONDS = 60.0
MLFLOW_PATIENCE_SECONDS = 5.0  # after a failure or SIGTERM: torchrun and Kubernetes allow 30 s in all
# what a config says of the machine and of the result, not of the training
OF_ENVIRONMENT = {
    *("versions", "device", "world_size", FORMER_WORLD_SIZES, "precision", "threads"),
    *("weights_sha256", "code_sha256", "recipe_sha256", "snapshot"),
}

OnTick = Callable[[dict[str, float]], None]


def train(
    run_name: str,
    params: Params,
    root: Path,
    say: Callable[[str], None],
    only_seed: int | None = None,
    allow_other_world_size: bool = False,
    on_tick: OnTick | None = None,
) -> Path | None:
    """Train a run and publish `models/RUN/`; wall-clock figures and the MLflow run's id go to its `record_folder`.

    A training that was stopped goes on from its last checkpoint in `checkpoints/RUN/`, bit for bit. Started by
    `torchrun`, each process is a rank of one training; the first one writes and speaks for all.

    Args:
        run_name: in `params.yaml`.
        params: of the workspace.
        root: the workspace.
        say: tells the person.
        only_seed: of a run with several: train this one, as a part of the run that a start without it publishes.
        allow_other_world_size: go on from a checkpoint of another number of ranks, not quite exactly.
        on_tick: told each line of the journal, with its times, but of seeds that train at once; what it raises ends the
            training.

    Returns:
        The folder of the model, or of the seed's; None on ranks that are not the first.

    Raises:
        InputError: if the data are not prepared, a checkpoint cannot be gone on from here, or the weights that the run
            starts from do not fit.
        Terminated: after SIGTERM, once a checkpoint is saved.
        ToldByWriter: on ranks that are not the first, in place of the error that the first one has.
        AtelierError: if training fails, or another process trains this run; the last good checkpoint stays.
    """
    with join_ranks() as ranks:
        try:
            tell = say if ranks.is_writer else lambda message: None
            run, start = params.run(run_name), Start(params, root, ranks, tell, allow_other_world_size, on_tick)
            if only_seed is not None:
                return _train_seed(run, start, only_seed)
            model = _train(run, start)
        except AtelierError as error:
            if ranks.is_writer or isinstance(error, RankLost):
                raise
            raise ToldByWriter(error) from None
        if model is not None:
            _end_file(root, run_name).unlink()  # last of all, after the lock is given back
        return model


@dataclass(frozen=True)
class Start:
    """Where and how trainings are started.

    Attributes:
        params: of the workspace.
        root: the workspace.
        ranks: that train.
        say: tells the person.
        allow_other_world_size: whether to go on from a checkpoint of another number of ranks.
        on_tick: told each line of the journal.
    """

    params: Params
    root: Path
    ranks: Ranks
    say: Callable[[str], None]
    allow_other_world_size: bool
    on_tick: OnTick | None


def _train(run: Run, start: Start) -> Path | None:
    root, ranks, say = start.root, start.ranks, start.say
    training = _training(run, start)
    folder, model = root / "checkpoints" / run.name, root / "models" / run.name
    with ExitStack() as held:
        ranks.by_writer(lambda: held.enter_context(hold(folder)))
        if ranks.by_writer(lambda: _has_ended(root, run.name, training.digest)):
            say(f"{model}: made by this training, which was killed after that")
            if ranks.is_writer:
                remove_folder(folder)
            return model if ranks.is_writer else None
        if run.recipe.seeds == 1:
            _train_once(training, start, folder, model)
        else:
            trained = {seed: _seed_folder(root, run, seed) / MODEL for seed in run.recipe.all_seeds}
            if start.params.train.seeds_at_once > 1 and ranks.world_size == 1:
                from atelier.training.seeds import train_at_once

                train_at_once(run.name, list(trained), start.params, root, say)
            else:
                for seed in trained:
                    say(f"seed {seed}")
                    _train_seed(run, start, seed)
            if ranks.is_writer:
                publish_best(trained, model, say)
        if not ranks.is_writer:
            return None
        write_atomic(_end_file(root, run.name), _end(root, run.name, training.digest))
        remove_folder(folder)
        return model


def _train_seed(run: Run, start: Start, seed: int) -> Path | None:
    """Train one of a run's seeds beside its checkpoints, where it stays until all have ended."""
    if seed not in run.recipe.all_seeds:
        first, last = run.recipe.all_seeds[0], run.recipe.all_seeds[-1]
        raise InputError(f"--only-seed {seed}: not a seed of runs.{run.name}, which has {first} to {last}")
    one = replace(run, recipe=run.recipe.model_copy(update={"seed": seed, "seeds": 1}))
    folder = _seed_folder(start.root, run, seed)
    with ExitStack() as held:
        start.ranks.by_writer(lambda: held.enter_context(hold(folder)))
        _train_once(_training(one, start), start, folder, folder / MODEL, group=folder.parent)
    return folder / MODEL if start.ranks.is_writer else None


def _seed_folder(root: Path, run: Run, seed: int) -> Path:
    return root / "checkpoints" / run.name / f"seed-{seed}"


@dataclass(frozen=True)
class Training:
    """A run, and all that its result depends on.

    Attributes:
        run: that is trained.
        card: of its data.
        own: the sources of what is the user's own, as they are now: they may be edited before the end. By their paths
            in the folder of the model.
        config: of its model.
        identity: what a checkpoint must agree with, to be gone on from; as is `environment`.
    """

    run: Run
    card: DataCard
    own: Mapping[str, bytes]
    config: ModelConfig
    identity: dict[str, Any]
    environment: dict[str, Any]

    @property
    def digest(self) -> str:
        """Of what it depends on."""
        return digest_of(to_json({"identity": self.identity, "environment": self.environment}).encode())


def _require_same_data(run: Run, card: DataCard) -> None:
    """Refuse data that were prepared with other parameters than those of now: the networks are of the latter."""
    info = run.info
    has, wants = (card.height, card.width, card.channels), (info.side, info.side, info.channels)
    folder, again = f"data/prepared/{run.dataset}", f"run 'atelier prepare {run.dataset}' again"
    if has != wants:
        raise InputError(f"{folder}: has images of {sides(has)}, and params.yaml says {sides(wants)}; {again}")
    if run.shape.classes and card.class_names != list(info.class_names):
        raise InputError(f"{folder}: has other classes than params.yaml says; {again}")


def _training(run: Run, start: Start) -> Training:
    """Say what a training is, after setting its arithmetic; the same on all ranks."""
    params, root, ranks = start.params, start.root, start.ranks
    card = read_card(root, run.dataset)
    _require_same_data(run, card)
    _set_arithmetic(run.recipe.precision)
    own, of_recipe = sources(run.code), part_sources(run.parts)
    config = _config(run, card, ranks, sources_sha256(own), sources_sha256(of_recipe))
    identity = {
        "training": config.model_dump(exclude=OF_ENVIRONMENT),
        "tick_kimg": params.train.tick_kimg,
        "pictures": params.train.pictures,
    }
    if own:
        identity["code"] = counted_digest(run.code)
    if of_recipe:
        identity["recipe_code"] = part_digests(run.parts)
    here = environment(ranks, config.precision)
    ranks.refuse_different({"identity": identity, "environment": here})
    if run.recipe.batch_per_rank:
        run = replace(run, recipe=run.recipe.over(ranks.world_size))
        config = config.model_copy(update={"recipe": run.recipe})
    ranks.share_of(run.recipe.batch)
    carried = {f"{CARRIED}/{name}": content for name, content in own.items()}
    carried |= {f"{RECIPE}/{name}": content for name, content in of_recipe.items()}
    return Training(run, card, carried, config, identity, here)


def _train_once(training: Training, start: Start, folder: Path, target: Path, group: Path | None = None) -> None:
    """Train a run of one seed.

    Args:
        training: of it.
        start: how it was started.
        folder: of its checkpoints; they stay there.
        target: folder of its model.
        group: the folder of the checkpoints of all seeds, if there are others.
    """
    params, root, ranks, say = start.params, start.root, start.ranks, start.say
    run, identity, here, config = training.run, training.identity, training.environment, training.config
    found = ranks.by_writer(lambda: _plain(take_up(folder, identity, here, say, start.allow_other_world_size)))
    checkpoint = None if found is None else Checkpoint(**found)
    if checkpoint is not None:
        torch.set_num_threads(checkpoint.threads)  # sums over another number of threads round differently
        here = checkpoint.environment  # with the numbers of ranks before
        say(f"going on from {checkpoint.position['images'] / 1000:g} kimg")
    former = here.get(FORMER_WORLD_SIZES, [])
    config = config.model_copy(update={"threads": torch.get_num_threads(), FORMER_WORLD_SIZES: former})
    method, data = _method(run, ranks, say), _images(run, params, root, ranks)
    validation = None
    if data.held_out is not None:
        from atelier.training.validation import Validation

        sampler = lambda: Sampler(method.sampling_network(), config)  # noqa: E731
        validation = Validation(run.recipe, data.split, data.held_out, sampler, method.ema, ranks, say)
    feed = None
    if ranks.is_writer:
        folder.mkdir(parents=True, exist_ok=True)
        values = run_params(config) | _data_params(root, run, training.card)
        feed = Feed(root, run.name, values, folder, training.digest, say, group)
        feed.start()
    bar = tqdm(
        total=round(run.recipe.kimg * 1000),
        unit=" images",
        unit_scale=True,
        desc=f"train {run.name}",
        bar_format="{desc} {percentage:3.0f}%{postfix}, {remaining} left, {rate_fmt} {bar}",
        disable=None if ranks.is_writer else True,
    )
    status = "FAILED"
    try:
        train_loop(
            method,
            data,
            folder,
            ranks,
            start_from=checkpoint,
            identity=identity,
            environment=here,
            kimg=run.recipe.kimg,
            batch=run.recipe.batch,
            settings=params.train,
            validation=validation,
            draw_picture=lambda path: draw_picture(method, config, path),
            progress=_progress(bar, run, say),
            say=say,
            on_tick=start.on_tick,
        )
        if ranks.is_writer:
            if validation is not None:
                validation.restore_best()
            method.finish(lambda: data.in_order(500))
            if validation is not None:
                config = config.model_copy(update={"snapshot": validation.result()})
            publish_model(method, config, training.own, folder, target)
        status = "FINISHED"
    except Terminated:
        status = "KILLED"
        raise
    except OSError as error:
        raise AtelierError(
            f"{error.filename or folder}: {error.strerror or error}; {checkpoints.last_good(folder)}"
        ) from None
    finally:
        bar.close()
        if feed is not None:
            patience = MLFLOW_WAIT_SECONDS if status == "FINISHED" else MLFLOW_PATIENCE_SECONDS
            feed.end(status, patience, run_params(config))
    if ranks.is_writer:
        publish_record(folder, root, run.name, target)


def _end_file(root: Path, run: str) -> Path:
    """Is there while an ended training cleans up: a process that is killed then has ended all the same."""
    return root / "checkpoints" / f".{run}.end"


def _end(root: Path, run: str, training: str) -> str:
    """Which training ended, by which code, and what it made."""
    return f"{training} {folder_digest(Path(atelier.__file__).parent)} {folder_digest(root / 'models' / run)}\n"


def _has_ended(root: Path, run: str, training: str) -> bool:
    """Whether all that is left to do is to clean up; what another training left there is removed."""
    file = _end_file(root, run)
    if not file.is_file():
        return False
    if read_limited(file, 300).decode(errors="replace") == _end(root, run, training):
        return True
    file.unlink()
    return False


def _plain(checkpoint: Checkpoint | None) -> dict[str, Any] | None:
    """As ranks can tell it each other."""
    return None if checkpoint is None else dict(checkpoint)


def _method(run: Run, ranks: Ranks, say: Callable[[str], None]) -> Method:
    ranks.together(lambda: refuse_too_large(run, ranks))
    torch.manual_seed(run.recipe.seed)
    networks = build_checked_networks(run.code, run.recipe, run.shape)
    if run.parent_folder is not None:
        start_from(networks, run.parent_folder, say)
    networks = synchronise(networks, ranks, run.recipe.norm_statistics)
    for network in networks.values():
        in_microbatches(network, run.recipe.microbatch)
        if run.recipe.compile:
            network.compile()
    own = None
    if run.parts:
        from atelier.training.own import load_own

        own = load_own(run.parts, run.recipe, run.shape, ranks)
    return build_method(run.entry, run.recipe, networks, run.shape.classes, ranks, own)


def _images(run: Run, params: Params, root: Path, ranks: Ranks) -> TrainingImages:
    def load() -> TrainingImages:
        split, validation = open_split(root, run.dataset, "train"), run.recipe.validation
        return TrainingImages(
            split,
            run.entry.data_range == "symmetric",
            run.recipe.seed,
            ranks.device,
            params.train.resident_mb << 20,
            None if validation is None else validation_places(split.images, validation.share),
        )

    data = ranks.together(load)
    if not run.shape.classes:
        data.labels = None
    return data


def _set_arithmetic(precision: str) -> None:
    """Same inputs, same bits; and what "fp32" means on a GPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a kernel for each tensor
    torch.backends.cudnn.benchmark = False  # it would choose algorithms by their timing
    # TF32 keeps 10 bits of 23: good enough beside bf16's 7, but not what a person who asks for fp32 means
    allow_tf32 = precision != "fp32"
    torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    torch.backends.cudnn.allow_tf32 = allow_tf32


def _config(run: Run, card: DataCard, ranks: Ranks, code_sha256: str | None, recipe_sha256: str | None) -> ModelConfig:
    return ModelConfig(
        run=run.name,
        dataset=run.dataset,
        code_sha256=code_sha256,
        recipe_sha256=recipe_sha256,
        model=run.model,
        recipe=run.recipe,
        noise=run.recipe.noise,
        data_range=run.entry.data_range,
        height=run.shape.height,
        width=run.shape.width,
        channels=run.shape.channels,
        class_names=list(run.info.class_names) if run.shape.classes else [],
        train_images_sha256=card.splits["train"].images_sha256,
        train_labels_sha256=card.splits["train"].labels_sha256,
        parent_sha256=run.parent_sha256,
        versions={"atelier": atelier.__version__, "torch": str(torch.__version__)} | run.code.versions,
        device=ranks.device.type,
        world_size=ranks.world_size,
        precision="bf16" if Autocast(run.recipe.precision, ranks.device).enabled else "fp32",
    )


def _data_params(root: Path, run: Run, card: DataCard) -> dict[str, Any]:
    """Which data exactly, by the digest that DVC keeps them under, and how many pictures were left out of them."""
    return {
        "data_dvc_md5": dvc_md5(prepared_folder(root, run.dataset)),
        "data_left_out": sum(item.is_picture for item in card.left_out),
    }


def _progress(bar: Any, run: Run, say: Callable[[str], None]) -> Callable[[int, float, dict[str, float]], None]:
    """Move the bar if a person is watching; otherwise say a line each tenth of the way."""
    total = run.recipe.kimg * 1000
    last_tenth = -1

    def report(images: int, images_per_second: float, figures: dict[str, float]) -> None:
        nonlocal last_tenth
        losses = {name: value for name, value in figures.items() if name.endswith("_loss")} or figures
        told = ", ".join(f"{name.removesuffix('_loss')} {value:.3g}" for name, value in losses.items())
        if not bar.disable:
            bar.set_postfix_str(told, refresh=False)
            bar.update(min(images, bar.total) - bar.n)
            return
        tenth = int(10 * images / total)
        if tenth > last_tenth and images_per_second:
            left = duration(max(total - images, 0) / images_per_second)
            kimg = f"{round(images / 1000, 1):g} of {total / 1000:g} kimg"
            say(f"{kimg}, {told}, {images_per_second:,.0f} images/s, {left} left")
        last_tenth = max(tenth, last_tenth)

    return report
