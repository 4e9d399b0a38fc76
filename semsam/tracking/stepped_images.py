"""Pictures that stand in MLflow's image grid, each a row with a slider over the steps."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable

from PIL import Image

from semsam.tracking.tracker import Tracker

_FOLDER = "images"  # Where MLflow keeps them, and its pages look.


class SteppedImages:
    """The images of a run, each sent once: MLflow itself would keep one again under another name."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        files = tracker.ask(lambda client: client.list_artifacts(tracker.run_id, _FOLDER))
        # The small copy comes last, so that an image with one is complete.
        self._complete = _names(one.path for one in files if one.path.endswith(".webp"))

    def log(self, picture: bytes, key: str, step: int, time: float) -> None:
        """Send a PNG, unless it is there; the same step and Unix time in seconds mean that it is the same.

        Raises `ValueError` for what is no picture.
        """
        when = round(time * 1000)
        if (key.replace("/", "~"), step, when) in self._complete:
            return
        try:
            with Image.open(io.BytesIO(picture)) as opened:
                opened.load()
        except OSError as error:
            raise ValueError(f"not a picture: {error}") from None
        # The time is MLflow's name for this very image; of a step's several images its pages show the latest.
        run_id = self._tracker.run_id
        self._tracker.ask(lambda client: client.log_image(run_id, opened, key=key, step=step, timestamp=when))


def image_key(file_name: str) -> str:
    """A file's name as a row's title: without its ending and without what MLflow refuses there."""
    return re.sub(r"[^\w\-./ ]", "_", file_name.rpartition(".")[0] or file_name, flags=re.ASCII)


def _names(paths: Iterable[str]) -> set[tuple[str, int, int]]:
    """Key, step and time in milliseconds of images, by the names that MLflow gives their files."""
    found = (re.fullmatch(rf"{_FOLDER}/(.+)\+step\+(\d+)\+timestamp\+(\d+)\+.*", path) for path in paths)
    return {(one[1], int(one[2]), int(one[3])) for one in found if one}
