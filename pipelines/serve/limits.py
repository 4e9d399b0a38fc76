"""How much of everything the server takes: what its memory is bounded by."""

from __future__ import annotations

from semsam.config import Count, Positive, PositiveFloat, settings


@settings
class Limits:
    """Of each replica; photos as they came are kept once for all of them."""

    max_image_bytes: Positive = 16 * 2**20  # Of an uploaded file, and of any other request; more: 413.
    max_pixels: Positive = 2**26  # Told from the header before a pixel is decoded; more: 413.
    # Requests that may wait for the model, each with what it has sent, beside the one that it works on; more: 429.
    max_waiting: Count = 64
    upload_seconds: PositiveFloat = 30.0  # For all of a request to arrive; more: 408.
    encoded_bytes: Positive = 2**30  # Of images as the network sees them, about 90 MB each at the paper's size.
    encoded_images: Positive = 256
    photo_bytes: Positive = 2**29  # Of the files themselves, from which a replica encodes what it has not seen yet.
    photos: Positive = 4096
