"""The JSON API and the page, as an ASGI application around a `Service`; what serves it is not its business."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, FastAPI, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serve.downloads import to_coco, to_png, to_rle
from pipelines.serve.faults import Refused, too_large
from pipelines.serve.messages import (
    About,
    Answer,
    Download,
    Everything,
    EverythingRequest,
    Image,
    ImageId,
    Problem,
    Prompt,
)
from pipelines.serve.service import Service

PAGE = Path(__file__).parent / "page"
_FILES = {"": "index.html", "app.js": "app.js", "masks.js": "masks.js", "style.css": "style.css"}
# Of the page: it asks this server alone, and shows images that it has made itself.
_POLICY = "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; frame-ancestors 'self'"
_HEADERS = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_REFUSALS: dict[int, str] = {
    404: "The image is not here, or not any longer: upload it again",
    408: "The request did not arrive in time",
    413: "More bytes or pixels than the server takes",
    415: "Not an image",
    422: "Malformed, or it makes no sense",
    429: "Too many others wait; Retry-After says for how many seconds",
}
_ID = Annotated[ImageId, InPath()]


def build_app(service: Service) -> FastAPI:
    """The application: `/` is the page, `/api/...` the API, `/openapi.json` its description."""
    app = FastAPI(
        title="Semantic-SAM on Ray",
        description="Masks of a click at every granularity, with quality and names; places are in the image's pixels.",
        version="1",
        docs_url=None,  # That page would load scripts from elsewhere.
        redoc_url=None,
        responses={status: {"model": Problem, "description": text} for status, text in _REFUSALS.items()},
    )
    app.add_middleware(_Bounded, service=service)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _other)
    _add_routes(app, service)
    for path, name in _FILES.items():
        app.add_api_route(f"/{path}", _file(PAGE / name), include_in_schema=False, methods=["GET"])
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.get("/api/about")
    async def about() -> About:
        return service.about()

    @app.post("/api/images", openapi_extra={"requestBody": {"content": _BYTES, "required": True}})
    async def upload(request: Request) -> Image:
        """Upload an image file, as the body of the request: JPEG, PNG, WebP, TIFF, BMP or GIF."""
        return await service.upload(await request.body())

    @app.post("/api/images/{image}/answer")
    async def answer(image: _ID, prompt: Prompt) -> Answer:
        """Masks of clicks, positive and negative, and a box that mean one object: from part to whole."""
        return await service.answer(image, prompt)

    @app.post("/api/images/{image}/everything")
    async def everything(image: _ID, asked: Annotated[EverythingRequest, Body()]) -> Everything:
        """All masks that are found without being asked for."""
        return await service.everything(image, asked)

    @app.post("/api/masks.png", response_class=Response, responses={200: {"content": {"image/png": {}}}})
    async def png(download: Download) -> Response:
        """Masks as a PNG: one white on black, several with their numbers."""
        data = await service.aside(lambda: to_png(download, service.limits.max_pixels))
        return Response(data, media_type="image/png", headers=_attachment(download, "png"))

    @app.post("/api/masks.rle.json", response_class=JSONResponse)
    async def run_lengths(download: Download) -> JSONResponse:
        """Masks as COCO's compressed run lengths."""
        rows = await service.aside(lambda: to_rle(download, service.limits.max_pixels))
        return JSONResponse(rows, headers=_attachment(download, "rle.json"))

    @app.post("/api/masks.coco.json", response_class=JSONResponse)
    async def coco(download: Download) -> JSONResponse:
        """Masks as a COCO json of one image."""
        document = await service.aside(lambda: to_coco(download, service.limits.max_pixels))
        return JSONResponse(document, headers=_attachment(download, "coco.json"))


def _attachment(download: Download, suffix: str) -> dict[str, str]:
    stem = "".join(one if one.isascii() and (one.isalnum() or one in "-_.") else "_" for one in download.file_name)
    return {"Content-Disposition": f'attachment; filename="{stem or "masks"}.{suffix}"'}


def _file(path: Path) -> Callable[[], Awaitable[FileResponse]]:
    async def answer() -> FileResponse:
        return FileResponse(path, headers=_HEADERS)

    return answer


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    return error.response()


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """The first thing that is wrong with a request, by its place: `points.0.x: Input should be ...`."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(one) for one in first["loc"] if one not in ("body", "path"))
    return Refused(422, "malformed", f"{place or 'body'}: {first['msg']}").response()


async def _other(_: Request, error: Exception) -> JSONResponse:
    """No such path or method, in the form of all other refusals."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers) if error.headers else None
    return JSONResponse({"code": "no_such_call", "message": str(error.detail)}, error.status_code, headers)


class _Bounded:
    """Lets in so many requests at a time, each with so many bytes and in so many seconds; refuses the others."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        try:
            with self.service.thread.place():
                body = await self._body(scope, receive)
                await self.app(scope, _again(body, receive), send)
        except Refused as refused:
            await refused.response()(scope, receive, send)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        limits = self.service.limits
        most = f"{limits.max_image_bytes} bytes are the most that a request may have"
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > limits.max_image_bytes:
            raise too_large(most)
        body = bytearray()
        try:
            async with asyncio.timeout(limits.upload_seconds):
                while True:
                    message = await receive()
                    body += message.get("body", b"")
                    if len(body) > limits.max_image_bytes:
                        raise too_large(most)
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            text = f"the request did not arrive within {limits.upload_seconds:g} s"
            raise Refused(408, "too_slow", text) from None


def _again(body: bytes, receive: Receive) -> Receive:
    """What gives the whole body at once, and after that what else comes, such as that the client has gone."""
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def give() -> Message:
        return messages.pop() if messages else await receive()

    return give
