"""Runs every protocol that a record has the annotations for, beside its blind baseline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from semsam.data.atoms import AtomMap
from semsam.data.images import decode_jpeg
from semsam.data.schema import Record, Region
from semsam.data.training_sample import regions_to_train
from semsam.evaluation.baselines import CANDIDATE_RADII, BaselineFit, Baselines, disc_ious
from semsam.evaluation.box_prompt import BoxPrompt
from semsam.evaluation.clicked_classes import ClickedClasses
from semsam.evaluation.granularity import Granularity
from semsam.evaluation.metric import Means
from semsam.evaluation.one_click import OneClick, innermost_pixel
from semsam.evaluation.overlaps import mask_ious
from semsam.predictor import Predictor

BASELINE = "baseline"  # First part of a blind baseline's metric name.


@dataclass(frozen=True)
class ClickedRegion:
    """A region that can be clicked on: its column in the atom map and its innermost pixel."""

    column: int
    region: Region
    click_xy: tuple[int, int]


@dataclass
class Protocols:
    """The metrics of one dataset's split, by their name in MLflow less the dataset: `one_click`, `baseline/one_click`..

    State is sums alone, so that workers send a few numbers however many images they measured.
    """

    one_click: OneClick = field(default_factory=OneClick)
    box_prompt: BoxPrompt = field(default_factory=BoxPrompt)
    granularity: Granularity = field(default_factory=Granularity)
    classes: ClickedClasses = field(default_factory=ClickedClasses)
    discs_one_click: OneClick = field(default_factory=OneClick)
    discs_granularity: Granularity = field(default_factory=Granularity)
    commonest: ClickedClasses = field(default_factory=ClickedClasses)

    def metrics(self) -> dict[str, Means]:
        return {
            "one_click": self.one_click,
            "box_prompt": self.box_prompt,
            "granularity": self.granularity,
            "classes": self.classes,
            f"{BASELINE}/one_click": self.discs_one_click,
            f"{BASELINE}/granularity": self.discs_granularity,
            f"{BASELINE}/classes": self.commonest,
        }

    def merge_sums(self, sums: dict[str, dict[str, tuple[float, int]]]) -> None:
        """Add what another worker measured, as its `sums()`."""
        for name, metric in self.metrics().items():
            metric.merge(Means.from_sums(sums.get(name, {})))

    def sums(self) -> dict[str, dict[str, tuple[float, int]]]:
        return {name: metric.sums for name, metric in self.metrics().items()}

    def means(self) -> dict[str, tuple[float, int]]:
        """Every number and how many values it is the mean of, by name without a dataset: `one_click/miou_max`."""
        return {
            f"{protocol}/{number}": (value, metric.count(number))
            for protocol, metric in self.metrics().items()
            for number, value in metric.compute().items()
        }

    def compute(self, dataset: str) -> dict[str, float]:
        """Every number under its name in MLflow, such as `one_click/ade20k/miou_oracle`."""
        return {
            f"{protocol}/{dataset}/{number}": value
            for protocol, metric in self.metrics().items()
            for number, value in metric.compute().items()
        }


def measure(predictor: Predictor, record: Record, baselines: Baselines, protocols: Protocols, chunk: int = 32) -> None:
    """Add one record of the evaluated split: clicks and boxes on its regions, in chunks of `chunk` prompts."""
    regions = list(regions_to_train(record.regions).values())
    if not regions:
        return
    predictor.set_image(decode_jpeg(record.image))
    atoms = AtomMap.from_rles([region.rle for region in regions], record.height, record.width)
    clicked = list(clicked_regions(regions, atoms))
    for start in range(0, len(clicked), chunk):
        _measure_clicks(predictor, atoms, clicked[start : start + chunk], protocols)
    for start in range(0, len(regions), chunk):
        _measure_boxes(predictor, atoms, regions[start : start + chunk], start, protocols)
    for one in clicked:
        _measure_baselines(atoms, one, baselines, protocols)


def fit_baselines(record: Record, fit: BaselineFit) -> None:
    """Add one record of the train split to what the blind baselines are tuned on."""
    regions = list(regions_to_train(record.regions).values())
    atoms = AtomMap.from_rles([region.rle for region in regions], record.height, record.width)
    clicked = {one.column: one for one in clicked_regions(regions, atoms)}
    for column, region in enumerate(regions):
        one = clicked.get(column)
        ious = disc_ious(atoms, one.click_xy, CANDIDATE_RADII)[:, column] if one else None
        fit.update(ious, region.object_category, region.part_category)


def clicked_regions(regions: list[Region], atoms: AtomMap) -> Iterator[ClickedRegion]:
    """The regions that have a mask with a pixel in it, with the click that each is asked for by."""
    areas = atoms.areas()
    for column, region in enumerate(regions):
        if areas[column]:
            yield ClickedRegion(column, region, innermost_pixel(atoms.mask(column)))


def _measure_clicks(predictor: Predictor, atoms: AtomMap, clicked: list[ClickedRegion], protocols: Protocols) -> None:
    answer = predictor.predict(points_xy=np.array([one.click_xy for one in clicked]) + 0.5)
    for one, masks, predicted, object_scores, part_scores in zip(
        clicked, answer.masks, answer.iou_predictions, answer.object_scores, answer.part_scores, strict=True
    ):
        ious = mask_ious(masks, atoms)
        protocols.one_click.update(ious[:, one.column], predicted)
        protocols.granularity.update(ious[:, _covering(atoms, one)])
        protocols.classes.update(
            ious[:, one.column],
            object_scores,
            part_scores,
            one.region.object_category,
            one.region.part_category,
        )


def _measure_boxes(
    predictor: Predictor, atoms: AtomMap, regions: list[Region], first_column: int, protocols: Protocols
) -> None:
    answer = predictor.predict(boxes_xyxy=np.array([region.box_xyxy for region in regions]))
    for column, region in enumerate(regions):
        ious = None
        if region.rle is not None:
            ious = mask_ious(answer.masks[column], atoms)[:, first_column + column]
        protocols.box_prompt.update(
            ious, answer.iou_predictions[column], answer.object_scores[column], region.object_category
        )


def _measure_baselines(atoms: AtomMap, one: ClickedRegion, baselines: Baselines, protocols: Protocols) -> None:
    if baselines.radii:
        ious = disc_ious(atoms, one.click_xy, np.array(baselines.radii))
        protocols.discs_one_click.update(ious[:, one.column], np.eye(len(ious))[baselines.single])
        protocols.discs_granularity.update(ious[:, _covering(atoms, one)])
    protocols.commonest.update(
        np.ones(1),
        _one_hot(baselines.commonest_object, one.region.object_category),
        _one_hot(baselines.commonest_part, one.region.part_category),
        one.region.object_category,
        one.region.part_category,
    )


def _covering(atoms: AtomMap, one: ClickedRegion) -> np.ndarray:
    x, y = one.click_xy
    return atoms.covering(np.array([y]), np.array([x]))[0]


def _one_hot(guess: int | None, truth: int | None) -> Float[np.ndarray, "1 x"]:
    scores = np.zeros((1, 1 + max(guess or 0, truth or 0)))
    if guess is not None:
        scores[0, guess] = 1
    return scores
