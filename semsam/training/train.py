"""The training of one worker, from the latest checkpoint to the last step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from semsam.data.vocabularies import JointVocabulary
from semsam.losses.criterion import Criterion
from semsam.model.semantic_sam import SemanticSam
from semsam.storage import Folder
from semsam.tracking import TrackingSettings
from semsam.training.checkpoint import checkpoint_folder, load_state, load_weights, remove_incomplete, the_one_before
from semsam.training.checkpoint_writer import CheckpointWriter, Whole
from semsam.training.engine import Engine, Worker, make_engine
from semsam.training.initial_weights import start_from
from semsam.training.loop import Loop, TrainingFault
from semsam.training.partition_files import Wanted, load_partitions
from semsam.training.partitions import WEIGHT, quantities
from semsam.training.recipe import Recipe
from semsam.training.recorder import Recorder
from semsam.training.step import TrainingStep, model_partitions
from semsam.training.train_log import read_known_log
from semsam.training.training_data import TrainingData, find_checkpoint


def make_step(recipe: Recipe, vocabulary: JointVocabulary) -> TrainingStep:
    """The training step with random weights that depend on the recipe's seed alone."""
    training = recipe.training
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        model = SemanticSam(recipe.model.resolve())
    # Without a name in any dataset there is nothing to teach it, and decay alone would wear it away.
    model.text_encoder.requires_grad_(recipe.text_is_trained() and bool(vocabulary.objects or vocabulary.parts))
    criterion = Criterion(recipe.criterion)
    return TrainingStep(model, criterion, vocabulary, training.seed, training.precision, training.click_rounds)


def train(
    recipe: Recipe, config: str, run: Folder, worker: Worker, run_name: str, tracking: TrackingSettings | None
) -> None:
    """Train until the recipe's last step; all workers call this with the same arguments.

    `config` is stored with every checkpoint, and the first worker reports to `tracking`.  Raises `TrainingFault` on all
    workers for a sample that cannot be read, and for a loss or gradient that is not finite.
    """
    training_data = TrainingData.of(recipe)
    first = _first_step(run, recipe, training_data, worker)
    checkpoint = checkpoint_folder(run, first) if first else None
    step = make_step(recipe, training_data.vocabulary)
    shapes = {name: p.shape for name, p in step.model.named_parameters() if p.requires_grad}
    if checkpoint is not None:
        with _together(worker, checkpoint):
            _load_weights(step.model, checkpoint, shapes)
        origin = f"going on after step {first} from {checkpoint.path}"
    else:
        origin = start_from(step.model, recipe.model)
    whole = None
    if worker.rank == 0:
        rest = {name: tensor.clone() for name, tensor in step.model.state_dict().items() if name not in shapes}
        whole = Whole(config, shapes, rest)
    step.to(worker.device)
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
    if checkpoint is not None:
        with _together(worker, checkpoint):
            _load_moments(engine, checkpoint, shapes, with_average)
            if worker.rank == 0:
                check_log(run, checkpoint)
    recorder = None
    if worker.rank == 0:
        print(origin, flush=True)
        known_log = None if checkpoint is None else load_state(checkpoint).log
        recorder = Recorder(recipe, training_data, run, first, run_name, tracking, known_log)
    writer = CheckpointWriter(
        run, worker.rank, worker.world_size, training.keep_last, with_average, whole, training.keep_every
    )
    try:
        _to_the_end(Loop(recipe, training_data, worker, step, engine, writer, recorder), first)
    except BaseException:
        if recorder is not None:
            recorder.close(failed=True)
        raise
    if recorder is not None:
        recorder.close(failed=False)


def check_log(run: Folder, checkpoint: Folder) -> None:
    """Raise `ValueError` where a run's log has not kept what a checkpoint knows of it."""
    known = load_state(checkpoint).log
    if known is not None:
        read_known_log(run, known)


def _first_step(run: Folder, recipe: Recipe, training_data: TrainingData, worker: Worker) -> int:
    """The step to go on with, which all workers agree on."""
    # Whoever loads a file checks it: here one worker looks at all of them, for at 512 each would ask 1,536 files.
    _, found = find_checkpoint(run, recipe, training_data, with_files=worker.rank == 0)
    first = int(worker.gather(str(found))[0])
    if worker.rank == 0:
        remove_incomplete(run)
    worker.barrier()
    return first


@contextmanager
def _together(worker: Worker, checkpoint: Folder) -> Iterator[None]:
    """Raise what is wrong with any worker's part of a checkpoint on all of them: trying again would mend nothing."""
    fault = ""
    try:
        yield
    except ValueError as error:
        fault = f"{error}; {the_one_before(checkpoint)}"
    faults = [text for text in worker.gather(fault) if text]
    if faults:
        raise TrainingFault(faults[0])


def _to_the_end(loop: Loop, first: int) -> None:
    try:
        loop.run(first)
    except TrainingFault:
        loop.writer.finish()  # All workers are here, so the checkpoint before the fault becomes complete.
        raise
    except BaseException:
        loop.writer.abandon()
        raise
    loop.writer.finish()


def _load_weights(model: SemanticSam, checkpoint: Folder, shapes: Mapping[str, torch.Size]) -> None:
    """Give a model the weights that a checkpoint's training goes on from."""
    model.load_weights(load_weights(checkpoint), checkpoint.path)  # Those to use: all names, but maybe averages.
    trained = {name: parameter for name, parameter in model.named_parameters() if name in shapes}
    wanted = [Wanted(name, 0, parameter.data.view(-1)) for name, parameter in trained.items()]
    state = load_state(checkpoint)
    load_partitions(checkpoint, WEIGHT, state.num_writers, _sizes(shapes), wanted, state.files)


def _load_moments(engine: Engine, checkpoint: Folder, shapes: Mapping[str, torch.Size], with_average: bool) -> None:
    """Fill an optimizer's state, for a module that has the weights."""
    state, partitions = load_state(checkpoint), model_partitions(engine)
    for quantity in quantities(with_average):
        if quantity == WEIGHT:
            continue
        wanted = [Wanted(one.name, one.start, one.values[quantity]) for one in partitions]
        load_partitions(checkpoint, quantity, state.num_writers, _sizes(shapes), wanted, state.files)
    engine.set_num_updates(state.step)


def _sizes(shapes: Mapping[str, torch.Size]) -> dict[str, int]:
    return {name: shape.numel() for name, shape in shapes.items()}
