"""What is guessed about prepared splits without seeing an image, tuned on their train splits and kept for others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from pipelines.evaluate.evaluate import Manifests, fit_baselines, guess_blindly
from pipelines.evaluate.item_files import chosen_rows, item_task
from semsam.config import config_values
from semsam.data.sealed import seal, unseal_as
from semsam.data.shards import Split, is_prepared, open_split
from semsam.evaluation.baselines import Baselines
from semsam.evaluation.questions import Questions
from semsam.storage import Folder

FIT_FILE = "baselines.json"  # Beside what was guessed with them.


@dataclass(frozen=True)
class Guessing:
    """How to guess: where guesses are kept, a folder for each dataset, and what they are tuned on."""

    data: str  # Where jobs.prepare wrote.
    folder: str
    questions: Questions
    levels: int  # Of the model that they stand beside.
    num_images: int  # Of each train split.
    rows_per_task: int


def guess(guessing: Guessing, splits: Mapping[str, Split], rows: Mapping[str, Sequence[int]]) -> Manifests:
    """The guesses about these rows of every dataset, by its name.  Needs a Ray connection."""
    baselines = _baselines(guessing, splits)
    tasks = {}
    for name, split in splits.items():
        asked = {
            "baselines": asdict(baselines[name]),
            "questions": config_values(guessing.questions),
            "levels": guessing.levels,
        }
        tasks[name] = item_task(split, rows[name], guessing.rows_per_task, f"{guessing.folder}/{name}", asked)
    return guess_blindly(tasks, baselines, guessing.questions, guessing.levels)


def _baselines(guessing: Guessing, splits: Mapping[str, Split]) -> dict[str, Baselines]:
    """The blind baselines of every dataset: those that lie there already if they were tuned on the same images."""
    found: dict[str, Baselines] = {}
    missing, made_from = {}, {}
    for name in splits:
        root = f"{guessing.data}/{name}/train"
        if not is_prepared(root):
            print(f"{name}: no train split, so no blind baselines")
            found[name] = Baselines()
            continue
        train = open_split(guessing.data, name, "train")
        rows = chosen_rows(train, guessing.num_images)
        made_from[name] = f"{train.manifest.digest()} {len(rows)} {guessing.levels}"
        kept = _kept_baselines(Folder(f"{guessing.folder}/{name}"))
        if kept is not None and kept.made_from == made_from[name]:
            found[name] = kept.baselines
        else:
            missing[name] = (root, rows)
    fitted = fit_baselines(missing, guessing.levels, guessing.rows_per_task) if missing else {}
    for name, baselines in fitted.items():
        found[name] = baselines
        Folder(f"{guessing.folder}/{name}").write(FIT_FILE, seal(asdict(_KeptBaselines(made_from[name], baselines))))
    return found


@dataclass(frozen=True)
class _KeptBaselines:
    made_from: str  # Of which train images, and for how many levels.
    baselines: Baselines


def _kept_baselines(folder: Folder) -> _KeptBaselines | None:
    data = folder.read_if_there(FIT_FILE)
    try:
        return None if data is None else unseal_as(_KeptBaselines, data, FIT_FILE, "blind baselines")
    except ValueError:  # Damaged, or of another version: tuned anew.
        return None
