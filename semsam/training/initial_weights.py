"""What a training begins with where it does not begin at random."""

from __future__ import annotations

from torch import Tensor

from semsam.model.semantic_sam import SemanticSam
from semsam.storage import Folder
from semsam.training.checkpoint import load_weights
from semsam.training.recipe import ModelChoice, is_below


def start_from(model: SemanticSam, choice: ModelChoice) -> str:
    """Give a model of random weights those of `choice.init`, if any; says what was taken, dropped and begun anew.

    Raises `ValueError` with every name that is missing, unexpected or misshapen outside of `choice.anew`, and for a
    name in `anew` that is neither in the model nor in the folder.
    """
    if choice.init is None:
        return "beginning with random weights"
    found, own = _read(choice.init), model.state_dict()
    for name in choice.anew:
        if not any(is_below(weight, (name,)) for weight in (*own, *found)):
            raise ValueError(f"model.anew: nothing is called {name}, neither in the model nor in {choice.init}")
    begun = [name for name in own if is_below(name, choice.anew)]
    dropped = [name for name in found if is_below(name, choice.anew)]
    taken = {name: weight for name, weight in found.items() if name not in dropped}
    model.load_weights(taken | {name: own[name] for name in begun}, choice.init)
    said = [f"beginning with {len(taken)} weights from {choice.init}"]
    said += [f"dropped: {', '.join(dropped)}"] if dropped else []
    said += [f"begun anew: {', '.join(begun)}"] if begun else []
    return "; ".join(said)


def _read(uri: str) -> dict[str, Tensor]:
    """All weights of a folder by the model's names: the place for other kinds of files."""
    return load_weights(Folder(uri))
