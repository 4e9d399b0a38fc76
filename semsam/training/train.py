"""The training of one worker, from the latest checkpoint to the last step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from semsam.data.vocabularies import JointVocabulary
from semsam.losses.criterion import Criterion
from semsam.model.semantic_sam import SemanticSam
from semsam.storage import Folder
from semsam.tracking.tracker import TrackingSettings
from semsam.training.attempt import RunFolder
from semsam.training.checkpoint import load_state, remove_incomplete
from semsam.training.checkpoint_reader import load_moments, load_saved_weights
from semsam.training.checkpoint_writer import CheckpointWriter, Whole
from semsam.training.engine import Worker, make_engine
from semsam.training.faults import TrainingFault, together
from semsam.training.initial_weights import freeze, start_from
from semsam.training.loop import Loop
from semsam.training.notices import Notices
from semsam.training.partition_files import Header
from semsam.training.partition_index import PartitionIndex
from semsam.training.recipe import Recipe
from semsam.training.recorder import Recorder
from semsam.training.resume import checkpoint_config
from semsam.training.step import TrainingStep, model_partitions
from semsam.training.train_log import read_known_log
from semsam.training.training_data import Saved, TrainingData, look_at_checkpoint


def make_step(recipe: Recipe, vocabulary: JointVocabulary) -> TrainingStep:
    """The training step with random weights that depend on the recipe's seed alone."""
    training = recipe.training
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        model = SemanticSam(recipe.model.resolve())
    # Without a name in any dataset there is nothing to teach it, and decay alone would wear it away.
    model.text_encoder.requires_grad_(recipe.text_is_trained() and bool(vocabulary.objects or vocabulary.parts))
    freeze(model, recipe.optimizer.frozen)
    criterion = Criterion(recipe.criterion)
    return TrainingStep(model, criterion, vocabulary, training.seed, training.precision, training.click_rounds)


def train(
    recipe: Recipe,
    job: dict[str, Any],
    run: RunFolder,
    worker: Worker,
    run_name: str,
    tracking: TrackingSettings | None,
    on_step: Callable[[int], None] = lambda step: None,
    ask_for_notice: Callable[[], str] | None = None,
    on_record: Callable[[Mapping[str, float]], None] = lambda values: None,
) -> None:
    """Train until the recipe's last step; all workers call this with the same arguments.

    `job` has the settings beside the recipe that are stored with every checkpoint; the first worker reports to
    `tracking`; `on_step` is called at the beginning of every step, and `ask_for_notice` now and then, by all workers
    together: it says which machines will be taken away (see `Notices`); `on_record`, by the first worker, with what
    each step came to.

    Raises `TrainingFault` on all workers for whatever trying again would not mend: a sample that cannot be read, a loss
    or gradient that is not finite, a checkpoint that is damaged, a disk that is full, a run that is another's by now.
    """
    training_data, saved, headers = _where_to_go_on(run, recipe, worker)
    first = saved.state.step if saved else 0
    recipe = saved.recipe if saved else recipe
    begun = _with_weights(recipe, job, training_data, saved, headers, worker)
    step = begun.step
    step.embed_frozen_names()
    training = recipe.training
    with_average = training.ema_decay is not None
    micro_batch = -(-training.global_batch // (worker.world_size * training.accumulation))
    engine = make_engine(
        step,
        recipe.optimizer,
        worker,
        training.zero_stage,
        micro_batch,
        training.accumulation,
        training.ema_decay,
    )
    if saved is not None:
        load_moments(engine, saved, worker.share(begun.index), worker)
    recorder = None
    with together(worker):
        if worker.rank == 0:
            if saved is not None:
                check_log(run, saved.folder)
            known_log, num_workers = saved.state.log if saved else None, worker.world_size
            recorder = Recorder(
                recipe, training_data, run, first, run_name, tracking, known_log, num_workers, on_record
            )
            print(begun.origin, flush=True)
    writer = CheckpointWriter(
        run, worker.rank, worker.world_size, training.keep_last, with_average, begun.whole, training.keep_every
    )
    writer.prepare(model_partitions(engine))
    try:
        notices = Notices(ask_for_notice, run.is_asked_to_save)
        loop = Loop(recipe, training_data, worker, step, engine, writer, recorder, on_step, notices)
        if saved is not None:
            loop.skipped_steps.extend(saved.state.skipped_steps)
        _to_the_end(loop, first)
    except BaseException:
        if recorder is not None:
            with suppress(ValueError, OSError):  # A log that cannot be written must not hide why the run ended.
                recorder.close(failed=True)
        raise
    if recorder is not None:
        recorder.close(failed=False)


@dataclass(frozen=True)
class _Begun:
    """The module to train, with its weights; what else there is of it the first worker alone knows."""

    step: TrainingStep
    origin: str  # Where the weights come from, in words.
    index: PartitionIndex | None  # Of the checkpoint's pieces, where there is one.
    whole: Whole | None


def _where_to_go_on(
    run: RunFolder, recipe: Recipe, worker: Worker
) -> tuple[TrainingData, Saved | None, dict[str, Header]]:
    """What is trained on and, if any, the checkpoint to go on from; to the first worker also its pieces' headers."""
    headers: dict[str, Header] = {}
    saved: Saved | None = None
    with together(worker):
        training_data = TrainingData.of(recipe)
        if worker.rank == 0:  # What 512 workers would each ask storage for is asked once, and handed to the others.
            saved, headers = look_at_checkpoint(run, recipe, training_data)
            run.check_holds_published(saved.state.step if saved else 0)
            remove_incomplete(run)
    return training_data, worker.share(saved), headers


def _with_weights(
    recipe: Recipe,
    job: dict[str, Any],
    training_data: TrainingData,
    saved: Saved | None,
    headers: Mapping[str, Header],
    worker: Worker,
) -> _Begun:
    """The module on this worker's device, with the weights that the first worker has read or drawn."""
    origin, index, whole = "", None, None
    with together(worker):
        step = make_step(recipe, training_data.vocabulary)
        if worker.rank == 0:
            shapes = {name: p.shape for name, p in step.model.named_parameters() if p.requires_grad}
            if saved is None:
                origin = start_from(step.model, recipe.model)
                if recipe.optimizer.frozen:
                    origin += f"; frozen: {', '.join(recipe.optimizer.frozen)}"
            else:
                origin = f"going on after step {saved.state.step} from {saved.folder.path}"
                index = load_saved_weights(step.model, saved, headers)
            rest = {name: tensor.clone() for name, tensor in step.model.state_dict().items() if name not in shapes}
            whole = Whole(checkpoint_config(recipe, job, training_data.names()), shapes, rest)
    step.to(worker.device)
    worker.broadcast_each(list(step.model.state_dict().values()))
    return _Begun(step, origin, index, whole)


def check_log(run: Folder, checkpoint: Folder) -> None:
    """Raise `ValueError` where a run's log has not kept what a checkpoint knows of it."""
    known = load_state(checkpoint).log
    if known is not None:
        read_known_log(run, known)


def _to_the_end(loop: Loop, first: int) -> None:
    try:
        try:
            loop.run(first)
        except TrainingFault:
            loop.faults.clear()
            loop.finish()  # All workers are here, so the checkpoint before the fault becomes complete.
            raise
        loop.finish()
    except BaseException:
        loop.writer.abandon()
        raise
