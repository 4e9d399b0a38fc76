"""From 20 drawn images in COCO format to a fine-tuned, evaluated model, with the command that a user would give."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.conftest import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

TRAIN, HELD_OUT, HEIGHT, WIDTH = 20, 32, 112, 144
CATEGORIES = [
    {"id": 11, "name": "balloon"},
    {"id": 4, "name": "kite"},
    {"id": 7, "name": "hut"},
    {"id": 30, "name": "door", "part_of": "hut"},
]
COLOURS = {11: (214, 40, 57), 4: (33, 104, 105), 7: (244, 185, 66), 30: (66, 43, 30)}
Polygon = list[tuple[float, float]]


def outline(kind: int, x: float, y: float, size: float) -> Polygon:
    """The shape of a kind around a place."""
    if kind == 11:
        turns = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        return [(x + 0.8 * size * np.cos(turn), y + size * np.sin(turn)) for turn in turns]
    if kind == 4:
        return [(x, y - size), (x + 0.6 * size, y - 0.2 * size), (x, y + size), (x - 0.6 * size, y - 0.2 * size)]
    if kind == 7:
        return [
            (x - size, y + size),
            (x - size, y - 0.3 * size),
            (x, y - size),
            (x + size, y - 0.3 * size),
            (x + size, y + size),
        ]
    return [(x - 0.3 * size, y + size), (x - 0.3 * size, y), (x + 0.3 * size, y), (x + 0.3 * size, y + size)]


def draw(rng: np.random.Generator) -> tuple[Image.Image, list[tuple[int, Polygon]]]:
    """Crayons on ruled paper, which is nothing like the toy world: flat, bright and with dark outlines."""
    paper = Image.new("RGB", (WIDTH, HEIGHT), (247, 244, 232))
    pen = ImageDraw.Draw(paper)
    for line in range(6, HEIGHT, 9):
        pen.line([(0, line), (WIDTH, line)], fill=(176, 203, 228))
    pen.line([(14, 0), (14, HEIGHT)], fill=(235, 150, 150))
    shapes: list[tuple[int, Polygon]] = []
    for column in range(3):
        kind, size = int(rng.choice([11, 4, 7])), float(rng.uniform(13, 20))
        x, y = 26 + 46 * column + rng.uniform(-3, 3), rng.uniform(24, HEIGHT - 24)
        shapes += [(one, outline(one, x, y, size)) for one in ([7, 30] if kind == 7 else [kind])]
    for kind, shape in shapes:
        pen.polygon(shape, fill=COLOURS[kind], outline=(30, 30, 30), width=2)
    return paper, shapes


def write_dataset(folder: Path) -> None:
    """COCO's own layout: images in `train/` and `val/`, polygons in `annotations/`."""
    (folder / "annotations").mkdir(parents=True)
    for seed, (split, count) in enumerate((("train", TRAIN), ("val", HELD_OUT))):
        rng = np.random.default_rng(seed)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        (folder / split).mkdir()
        for number in range(1, count + 1):
            paper, shapes = draw(rng)
            paper.save(folder / split / f"page {number}.png")
            images.append({"id": number, "file_name": f"page {number}.png", "height": HEIGHT, "width": WIDTH})
            for kind, shape in shapes:
                row = {"id": len(annotations) + 1, "image_id": number, "category_id": kind}
                annotations.append(row | {"segmentation": [np.array(shape).ravel().tolist()]})
        document = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))


@pytest.fixture
def checkpoint() -> Path:
    """The last checkpoint of `make quickstart`, which CI runs before this."""
    found = list((ROOT / "outputs" / "quickstart" / "runs" / "toy").glob("checkpoint-*"))
    if not found:
        pytest.skip(f"no checkpoint in {ROOT}/outputs/quickstart/runs/toy: `make quickstart` makes one")
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]))


def test_twenty_images_make_a_model_better_by_more_than_its_interval(tmp_path: Path, checkpoint: Path) -> None:
    write_dataset(tmp_path / "pages")
    command = [sys.executable, "-m", "jobs.finetune", f"data={tmp_path}/pages", f"checkpoint={checkpoint}"]
    command += [f"output={tmp_path}/out", "train.training.steps=80", "evaluate.resamples=500"]
    is_quiet = os.getloadavg()[0] < (os.cpu_count() or 1)  # What else a machine does is no matter of the claim.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    took = re.search(r"^took (\d+) s; everything is in ", done.stdout, re.MULTILINE)
    assert took is not None
    print(done.stdout[-6000:])
    assert re.search(
        r"^beginning with \d+ weights from .*; dropped: none; begun anew: none; frozen: none$", done.stdout, re.M
    )
    figures = json.loads((tmp_path / "out" / "summary.json").read_text())
    for name in ("one_click/coco_instances/miou_oracle", "box_prompt/coco_instances/miou", "masks/coco_instances/ap"):
        assert figures[name]["difference_low"] > 0, (name, figures[name])
    assert int(took[1]) < 300 or not is_quiet
