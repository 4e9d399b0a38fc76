"""What a training begins with where it does not begin at random."""

from __future__ import annotations

from torch import Tensor

from semsam.model.semantic_sam import SemanticSam
from semsam.setting_kinds import did_you_mean
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
    said = f"beginning with {len(taken)} weights from {choice.init}"
    return f"{said}; dropped: {', '.join(dropped) or 'none'}; begun anew: {', '.join(begun) or 'none'}"


def freeze(model: SemanticSam, names: tuple[str, ...]) -> None:
    """Take the parameters below some names out of the training, and so out of every optimizer's groups.

    Raises `ValueError` for a name of nothing, and where nothing would be left to learn.
    """
    parameters = dict(model.named_parameters())
    for name in names:
        below = [one for one in parameters if is_below(one, (name,))]
        if not below:
            known = {one.rpartition(".")[0] for one in parameters} | {one.partition(".")[0] for one in parameters}
            raise ValueError(f"optimizer.frozen: nothing in the model is called {name}{did_you_mean(name, known)}")
        for one in below:
            parameters[one].requires_grad_(False)
    if names and not any(parameter.requires_grad for parameter in parameters.values()):
        raise ValueError(f"optimizer.frozen: below {', '.join(names)} is all that could learn")


def _read(uri: str) -> dict[str, Tensor]:
    """All weights of a folder by the model's names: the place for other kinds of files."""
    return load_weights(Folder(uri))
