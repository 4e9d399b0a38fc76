"""What a client did that cannot be answered, each with its status and a word that programs can go by."""

from __future__ import annotations

from fastapi.responses import JSONResponse


class Refused(Exception):  # noqa: N818 - it is an answer, not an error of ours.
    """A request that gets no more than this answer."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers

    def response(self) -> JSONResponse:
        """As it is sent: a `Problem`."""
        return JSONResponse({"code": self.code, "message": self.message}, self.status, self.headers)


def unknown_image(image: str) -> Refused:
    """The answer at which a client uploads the image again."""
    return Refused(404, "unknown_image", f"image {image} is not here, or not any longer: upload it again")


def malformed(message: str) -> Refused:
    """The answer to what has the right form and makes no sense."""
    return Refused(422, "malformed", message)


def overloaded(seconds: int) -> Refused:
    """The answer while too many others wait."""
    return Refused(
        429, "overloaded", f"too many requests wait; try again in {seconds} s", {"Retry-After": str(seconds)}
    )


def too_large(message: str) -> Refused:
    """The answer to more bytes or pixels than the server takes."""
    return Refused(413, "too_large", message)
