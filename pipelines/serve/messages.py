"""What clients and the server say to each other; OpenAPI's description is made of this file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

LONGEST_SIDE = 2**17
MOST_NAMES = 64
MOST_POINTS = 32
MOST_MASKS = 256


def _name(text: str) -> str:
    found = " ".join(text.split())
    if not found:
        raise ValueError("a name is a word or more")
    if not found.isprintable():
        raise ValueError("a name has characters that cannot be shown")
    return found


def _file_name(text: str) -> str:
    if not text.isprintable():
        raise ValueError("a file's name has characters that cannot be shown")
    return text


Name = Annotated[str, Field(max_length=64, min_length=1, examples=["car"]), AfterValidator(_name)]
ImageId = Annotated[str, Field(pattern="^[0-9a-f]{32}$", description="As the upload's answer gave it.")]
Pixel = Annotated[float, Field(ge=0, lt=LONGEST_SIDE, allow_inf_nan=False)]
Edge = Annotated[float, Field(gt=-LONGEST_SIDE, lt=LONGEST_SIDE, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=1, lt=LONGEST_SIDE)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Milliseconds = Annotated[float, Field(ge=0)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Problem(BaseModel):
    """Why a request was refused."""

    code: str  # For programs.
    message: str  # For people.


class Vocabulary(_Message):
    """Names to choose from, of the client's own; none: masks are not named."""

    objects: Annotated[list[Name], Field(max_length=MOST_NAMES)] = []
    parts: Annotated[list[Name], Field(max_length=MOST_NAMES)] = []


class Point(_Message):
    """A click, in the image's pixels; of a photo turned by its EXIF, as it is shown."""

    x: Pixel
    y: Pixel
    positive: bool = True  # On the object; or else beside it.


class Box(_Message):
    """A box in the image's pixels, which may reach beyond it."""

    x1: Edge
    y1: Edge
    x2: Edge
    y2: Edge


class RunLengths(_Message):
    """A mask as COCO's compressed run lengths."""

    size: tuple[Side, Side]  # Height and width.
    counts: Annotated[str, Field(max_length=2**22)]


class Prompt(Vocabulary):
    """Clicks and a box that mean one object; a positive click or a box must be among them."""

    points: Annotated[list[Point], Field(max_length=MOST_POINTS)] = []
    box: Box | None = None
    # The mask of an earlier answer, which is to be corrected; used by models with `further_clicks`.
    last: RunLengths | None = None


class EverythingRequest(Vocabulary):
    """What is looked for without clicks."""

    # `masks`: the sure masks of a grid of clicks, named where there are names.  The others are of the generic queries
    # and need object names: `instances` and parts of them, which overlap; `panoptic`, where no two masks do;
    # `semantic`, one mask a name.
    kind: Literal["masks", "instances", "panoptic", "semantic"] = "masks"
    points_per_side: Annotated[int, Field(ge=1, le=32)] = 16  # Of the grid.
    min_quality: Share = 0.7  # Of `masks`: the IoU that the model predicts; of others: the score of the name.
    min_stability: Share = 0.8


class Image(BaseModel):
    """An image that may be asked about."""

    id: str  # A digest of its bytes.
    height: int
    width: int
    num_bytes: int
    time_ms: dict[str, Milliseconds]


class Named(BaseModel):
    """A name and how sure the model is of it."""

    name: str
    score: Share


class FoundMask(BaseModel):
    """A mask with all that is known of it."""

    rle: RunLengths
    bbox: tuple[float, float, float, float]  # Left, top, width and height of the mask in pixels, as COCO's.
    area: int
    quality: float  # The IoU that the model predicts; of everything but `masks` the score of the name.
    level: int | None  # The model's own number of the granularity; None: it has none.
    objects: list[Named]  # The likeliest, best first.
    parts: list[Named]


class Answer(BaseModel):
    """The masks of a prompt, from part to whole: at most one for each of the model's levels, no two alike."""

    image: str
    height: int
    width: int
    masks: list[FoundMask]
    chosen: int | None  # Which of the masks to show where only one may be; None: there is none.
    # How the clicks were used.  `single`: there was one click or one box.  `joint`: the model saw all of them.
    # `agreement`: it is a model for one click or box; the box, or without one each positive click, was asked alone, and
    # that mask taken which is right about most of the clicks.
    clicks: Literal["single", "joint", "agreement"]
    last_used: bool  # Whether `last` was.
    time_ms: dict[str, Milliseconds]


class Everything(BaseModel):
    """All masks that were found, the best first."""

    image: str
    height: int
    width: int
    kind: str
    masks: list[FoundMask]
    time_ms: dict[str, Milliseconds]


class DownloadedMask(_Message):
    """A mask to be written, and its name."""

    rle: RunLengths
    name: Name | None = None
    score: Share | None = None


class Download(_Message):
    """Masks of one image for a file."""

    file_name: Annotated[str, Field(max_length=200), AfterValidator(_file_name)] = "image"
    masks: Annotated[list[DownloadedMask], Field(min_length=1, max_length=MOST_MASKS)]


class About(BaseModel):
    """What this server is, and how it is."""

    model: str
    num_levels: int
    further_clicks: bool  # Whether the model takes several clicks at once.
    max_image_bytes: int
    max_pixels: int
    objects: list[str]  # Names to begin with.
    parts: list[str]
    encoded_images: int  # Kept by the replica that answers,
    encoded_bytes: int
    waiting: int
