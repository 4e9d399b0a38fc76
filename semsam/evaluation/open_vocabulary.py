"""Are names known that were never trained?  Top-1 of clicked regions, by whether the training had their names."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from semsam.data.manifest import Vocabulary
from semsam.data.vocabularies import clean_name
from semsam.evaluation.clicked_classes import is_best
from semsam.evaluation.prompt_table import PromptTable
from semsam.evaluation.values import Values

SEED = 0  # Of the names' shuffling.


@dataclass(frozen=True)
class TrainedNames:
    """The names that a training taught, as the text encoder reads them, whatever dataset they came from."""

    objects: tuple[str, ...]
    parts: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]  # (object, part) that were taught together.


def open_vocabulary(clicks: PromptTable, vocabulary: Vocabulary, trained: TrainedNames) -> dict[str, Values]:
    """`object_top1_new`, `part_top1_new`: shares of regions with a name that was never trained that are named rightly.

    `..._trained` is the same of the names that were, `..._shuffled` that of new names if the vocabulary's names had
    been dealt out by chance.  `pair_top1_new` and `pair_top1_trained` ask for both names of a part, where each of them
    was trained and the pair was not, or was.  The level is the one that fits best, as in `clicked_classes`.
    """
    level, found = clicks.best(), {}
    objects, parts = (np.array([clean_name(one) for one in names]) for names in (vocabulary.objects, vocabulary.parts))
    known_objects, known_parts = np.isin(objects, trained.objects), np.isin(parts, trained.parts)
    is_right = {}
    for what, names, truth, known in (
        ("object", clicks.prompted.objects, clicks.object_category, known_objects),
        ("part", clicks.prompted.parts, clicks.part_category, known_parts),
    ):
        best = clicks.at(names, level)
        is_right[what] = is_best(best, truth, 1)
        of_new, of_trained = _of_names(truth, ~known), _of_names(truth, known)
        dealt = np.append(np.random.default_rng(SEED).permutation(len(known)), -2)  # -1: no name, which is never best.
        found[f"{what}_top1_new"] = Values.of(is_right[what], clicks.image, truth).where(of_new)
        found[f"{what}_top1_trained"] = Values.of(is_right[what], clicks.image, truth).where(of_trained)
        found[f"{what}_top1_shuffled"] = Values.of(is_best(best, dealt[truth], 1), clicks.image, truth).where(of_new)
    both = Values.of(is_right["object"] * is_right["part"], clicks.image, clicks.object_category)
    has_pair = _of_names(clicks.object_category, known_objects) & _of_names(clicks.part_category, known_parts)
    pairs = set(trained.pairs)
    is_trained = np.array(
        [
            kept and (str(objects[one]), str(parts[part])) in pairs
            for kept, one, part in zip(has_pair, clicks.object_category, clicks.part_category, strict=True)
        ],
        bool,
    )
    return {
        **found,
        "pair_top1_new": both.where(has_pair & ~is_trained),
        "pair_top1_trained": both.where(has_pair & is_trained),
    }


def _of_names(truth: Int64[np.ndarray, " p"], wanted: Bool[np.ndarray, " x"]) -> Bool[np.ndarray, " p"]:
    """Which regions have one of the wanted names."""
    return np.append(wanted, False)[truth]  # -1, no name, is the last.
