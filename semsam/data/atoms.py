"""All masks of an image as one label map: the common refinement of regions that nest and overlap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt


@dataclass(frozen=True)
class AtomMap:
    """Each label is one exact set of covering masks; label 0 is the pixels that no mask covers.

    `labels` is uint16, or uint32 where there are more labels than that.  `table[label, j]` says whether mask `j` covers
    the label's pixels, so mask `j` is `table[labels, j]`: look points up, never build the stack of masks.
    """

    labels: UInt[np.ndarray, "h w"]
    table: Bool[np.ndarray, "a m"]
