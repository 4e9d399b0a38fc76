"""Two evaluations side by side: what changed, how sure that is, and what may not be compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.compare import CompareJob, main, run, table
from pipelines.evaluate.item_files import item_task, write_items, write_manifest
from semsam.data.shards import Split
from semsam.evaluation.baselines import BaselineFit, Baselines, blind_item
from semsam.evaluation.questions import Questions
from tests.painted_shards import VOCABULARIES, write_painted_shards

Evaluate = Callable[..., str]


@pytest.fixture
def evaluate(tmp_path: Path) -> Evaluate:
    """Writes the items of blind guesses, which are as good as a model's for this: the discs have these radii."""
    shards = write_painted_shards(tmp_path / "shards", 8, {"pascal_part": VOCABULARIES["pascal_part"]})

    def write(name: str, radii: tuple[float, ...], rows: range = range(8), seed: int = 0) -> str:
        split = Split(f"{shards}/pascal_part/train")
        asked = {"questions": {"seed": seed}, "radii": list(radii)}
        task = item_task(split, rows, 4, f"{tmp_path}/{name}/items/pascal_part", asked)
        fit = BaselineFit()
        for row in range(8):
            fit.merge(BaselineFit.of(split.record(row)))
        tuned = fit.compute(len(radii))
        guesses = Baselines(radii, 0, 0, tuned.commonest_object, None, tuned.thing, None, tuned.part)
        vocabulary, questions = split.manifest.vocabulary, Questions(seed=seed)
        parts = [
            write_items(task, split, position, lambda one: blind_item(one, guesses, questions, vocabulary, 2))[0]
            for position in range(len(task.rows))
        ]
        write_manifest(task, split, parts)
        return f"{tmp_path}/{name}"

    return write


def test_what_changed_is_told_with_how_sure_it_is(evaluate: Evaluate) -> None:
    small, large = evaluate("small", (0.01, 0.02)), evaluate("large", (0.2, 0.3))
    found = {one.name: one for one in run(CompareJob(small, large, resamples=200))}
    clicks = found["one_click/pascal_part/miou_max"]
    assert clicks.after > clicks.before + 0.1
    assert 0 < clicks.interval.low < clicks.after - clicks.before < clicks.interval.high
    assert clicks.is_sure
    assert len(clicks.moved) == 5
    changes = [abs(one.after - one.before) for one in clicks.moved]
    assert changes == sorted(changes, reverse=True)
    assert "000001" not in {one.sample_id for one in clicks.moved}  # It has no regions.
    boxes = found["box_prompt/pascal_part/miou"]
    assert (boxes.before, boxes.interval.low, boxes.interval.high, boxes.moved) == (boxes.after, 0, 0, ())
    assert not boxes.is_sure
    lines = table(list(found.values())).splitlines()
    assert any(line.startswith("one_click/pascal_part/miou_max") and line.endswith(" *") for line in lines)
    assert f"  {clicks.moved[0].sample_id}" in "\n".join(lines)


def test_evaluations_that_are_not_of_the_same_items_are_refused(evaluate: Evaluate, tmp_path: Path) -> None:
    whole = evaluate("whole", (0.1, 0.2))
    with pytest.raises(ValueError, match="^pascal_part: not the same images: 4 are in one evaluation only: 000004"):
        run(CompareJob(whole, evaluate("half", (0.1, 0.2), range(4))))
    with pytest.raises(ValueError, match="^pascal_part: the evaluations are not of the same questions: "):
        run(CompareJob(whole, evaluate("other", (0.1, 0.2), seed=1)))
    with pytest.raises(ValueError, match=rf"^{tmp_path}/nothing/items: no evaluation has come to its end here"):
        run(CompareJob(whole, f"{tmp_path}/nothing"))


def test_the_command_takes_two_folders(evaluate: Evaluate, capsys: pytest.CaptureFixture[str]) -> None:
    folder = evaluate("one", (0.1, 0.2))
    main([folder, folder, "resamples=10", "show=0"])
    said = capsys.readouterr().out
    assert "one_click/pascal_part/miou_max" in said
    assert "moved most" not in said
