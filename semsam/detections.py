"""Answers as `supervision.Detections`, for that library's drawing, tracking and counting; the extra `supervision`.

A detection has its box, its mask, a confidence, and in `data` what else is known of it: `class_name` and `part_name`
(None where there is no vocabulary, or no part), and the numbers behind the confidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float


def detections(
    boxes_xyxy: Float[np.ndarray, "m 4"],
    masks: Bool[np.ndarray, "m h w"],
    confidences: Float[np.ndarray, " m"],
    class_ids: Sequence[int] | None,
    data: Mapping[str, Sequence[Any]],
) -> Any:
    """The `supervision.Detections` of `m` masks; `class_ids` are None where nothing has a name.

    Raises `ValueError` with what to install where the library is missing.
    """
    try:
        from supervision import Detections
    except ModuleNotFoundError as error:
        raise ValueError(
            f"to_supervision needs {error.name} of the extra [supervision], which is not installed here; in this "
            "project's folder: pip install -c infra/constraints.txt -e '.[supervision]'"
        ) from None
    return Detections(
        xyxy=np.asarray(boxes_xyxy, np.float64).reshape(-1, 4),
        mask=masks,
        confidence=np.asarray(confidences, np.float64),
        class_id=None if class_ids is None else np.asarray(class_ids, np.int64),
        data={name: _column(values) for name, values in data.items()},
    )


def _column(values: Sequence[Any]) -> np.ndarray:
    """Numbers as numbers, and names, some of which may be None, as objects."""
    if any(value is None or isinstance(value, str) for value in values):
        column = np.empty(len(values), object)
        column[:] = values
        return column
    return np.array(values)
