"""Going on from a checkpoint, with one reader for each of its bytes.

The first worker reads the headers of all pieces and the weights, which it sends to the others on their devices.  What
the optimizer keeps, two thirds of the bytes and more, is read where it is wanted.
"""

from __future__ import annotations

from collections.abc import Mapping

from semsam.model.semantic_sam import SemanticSam
from semsam.training.checkpoint import damaged, load_weights
from semsam.training.engine import Engine, Worker
from semsam.training.partition_files import Header, partition_file
from semsam.training.partition_index import PartitionIndex
from semsam.training.partition_reading import Wanted, fill, fill_together
from semsam.training.partitions import WEIGHT, quantities
from semsam.training.step import model_partitions
from semsam.training.training_data import Saved


def load_saved_weights(model: SemanticSam, saved: Saved, headers: Mapping[str, Header]) -> PartitionIndex:
    """Give the first worker's model the weights that training goes on from; the index of all pieces.

    `headers` are those of the pieces.  Raises `ValueError`, naming the file, for what is damaged or does not fit.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    sizes = {name: parameter.numel() for name, parameter in trained.items()}
    with damaged(saved.folder):
        # Those to use: all names, but where there is an average, that.
        model.load_weights(load_weights(saved.folder), saved.folder.path)
        pieces = {
            quantity: {name: headers[name] for name in names if name in headers}
            for quantity, names in _files(saved).items()
        }
        index = PartitionIndex.of(saved.folder.path, pieces, sizes)
        wanted = [Wanted(name, 0, parameter.data.view(-1)) for name, parameter in trained.items()]
        fill(saved.folder, index, {WEIGHT: wanted})
    return index


def load_moments(engine: Engine, saved: Saved, index: PartitionIndex | None, worker: Worker) -> None:
    """Fill an optimizer's state, for a module that has the weights; all workers call this."""
    assert index is not None
    partitions = model_partitions(engine)
    wanted = {
        quantity: [Wanted(one.name, one.start, one.values[quantity]) for one in partitions]
        for quantity in index.quantities
        if quantity != WEIGHT
    }
    fill_together(saved.folder, index, wanted, worker, lambda: damaged(saved.folder))
    engine.set_num_updates(saved.state.num_updates)


def _files(saved: Saved) -> dict[str, list[str]]:
    """The names of a checkpoint's pieces by quantity."""
    with_average = saved.recipe.training.ema_decay is not None
    return {
        quantity: [partition_file(quantity, writer) for writer in range(saved.state.num_writers)]
        for quantity in quantities(with_average)
    }
