"""The API without Ray: what it answers, what it refuses, and that no client sees another's image or names."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.serve.kept import Kept
from pipelines.serve.limits import Limits
from pipelines.serve.photos import PhotosHere
from pipelines.serve.service import Service
from semsam.data import rle
from semsam.model.presets import preset
from semsam.model.semantic_sam import SemanticSam
from semsam.predictor import ImageSize, Predictor
from tests.listening import listening

LIMITS = Limits(max_image_bytes=200_000, max_pixels=40_000, max_waiting=8, encoded_images=3, photos=4)
NAMES = {"objects": ["car", "dog"], "parts": ["wheel"]}


@pytest.fixture(scope="module")
def model() -> SemanticSam:
    return SemanticSam.untrained("debug")


@pytest.fixture(scope="module")
def predictor(model: SemanticSam) -> Predictor:
    return Predictor(model, ImageSize(64, 96))


def serving(predictor: Predictor, limits: Limits = LIMITS) -> Service:
    return Service(predictor, PhotosHere(limits), limits, "debug", ("car",), ("wheel",))


@pytest.fixture
def service(predictor: Predictor) -> Iterator[Service]:
    found = serving(predictor)
    yield found
    found.thread.close()


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    with listening(service) as found:
        yield found


def photo(seed: int = 0, height: int = 60, width: int = 90, kind: str = "PNG") -> bytes:
    rng = np.random.default_rng(seed)
    pixels = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), np.uint8), (0, 0), 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def upload(client: httpx.Client, data: bytes) -> str:
    answer = client.post("/api/images", content=data)
    assert answer.status_code == 200, answer.text
    found: str = answer.json()["id"]
    return found


def click(x: float, y: float, **more: object) -> dict[str, object]:
    return {"points": [{"x": x, "y": y}]} | more


def test_an_upload_tells_size_and_times(client: httpx.Client) -> None:
    found = client.post("/api/images", content=photo()).json()
    assert (found["height"], found["width"], found["num_bytes"]) == (60, 90, len(photo()))
    assert {"image", "encoder", "queue", "total"} <= found["time_ms"].keys()
    again = client.post("/api/images", content=photo()).json()
    assert again["id"] == found["id"]
    assert "encoder" not in again["time_ms"]  # It is kept.


def test_a_click_has_the_predictor_s_masks_from_part_to_whole(client: httpx.Client, model: SemanticSam) -> None:
    image = upload(client, photo(1))
    found = client.post(f"/api/images/{image}/answer", json=click(40.5, 20.5, **NAMES)).json()
    own = Predictor(model, ImageSize(64, 96))
    own.set_image(photo(1))
    own.set_vocabulary(NAMES["objects"], NAMES["parts"])
    expected = own.predict(points_xy=[[40.5, 20.5]])
    masks = [rle.decode(one["rle"]["counts"].encode(), 60, 90) for one in found["masks"]]
    areas = [int(mask.sum()) for mask in masks]
    assert areas == sorted(areas) == [one["area"] for one in found["masks"]]
    assert {mask.tobytes() for mask in masks} == {mask.tobytes() for mask in expected.masks[0] if mask.any()}
    chosen = expected.masks[0, expected.chosen[0]]
    assert not chosen.any() or masks[found["chosen"]].tobytes() == chosen.tobytes()
    assert found["clicks"] == "single"
    for one in found["masks"]:
        assert [name["name"] for name in one["objects"]] in (["car", "dog"], ["dog", "car"])
        assert [name["name"] for name in one["parts"]] == ["wheel"]


def test_without_names_masks_have_none(client: httpx.Client) -> None:
    found = client.post(f"/api/images/{upload(client, photo())}/answer", json=click(9, 9)).json()
    assert all(one["objects"] == one["parts"] == [] for one in found["masks"])


def test_a_model_for_one_click_takes_several_by_agreement(client: httpx.Client) -> None:
    image = upload(client, photo())
    points = [{"x": 20, "y": 20}, {"x": 50, "y": 30}, {"x": 80, "y": 50, "positive": False}]
    found = client.post(f"/api/images/{image}/answer", json={"points": points}).json()
    assert found["clicks"] == "agreement"
    box = {"x1": 10, "y1": 5, "x2": 60, "y2": 50}
    found = client.post(f"/api/images/{image}/answer", json={"points": points[2:], "box": box}).json()
    assert found["clicks"] == "agreement"
    assert client.post(f"/api/images/{image}/answer", json={"box": box}).json()["clicks"] == "single"


def test_a_model_for_several_clicks_sees_them_and_the_last_mask() -> None:
    torch.manual_seed(0)
    several = SemanticSam(replace(preset("debug"), further_clicks=True)).eval()
    service = serving(Predictor(several, ImageSize(64, 96)))
    with listening(service) as client:
        image = upload(client, photo())
        points = [{"x": 20, "y": 20}, {"x": 80, "y": 50, "positive": False}]
        first = client.post(f"/api/images/{image}/answer", json={"points": points}).json()
        assert (first["clicks"], first["last_used"]) == ("joint", False)
        last = rle.encode(np.ones((60, 90), bool)).decode()
        more = {"points": points, "last": {"size": [60, 90], "counts": last}}
        assert client.post(f"/api/images/{image}/answer", json=more).json()["last_used"]
        more["last"] = {"size": [9, 9], "counts": last}
        assert client.post(f"/api/images/{image}/answer", json=more).status_code == 422
    service.thread.close()


@pytest.mark.parametrize("kind", ["masks", "instances", "panoptic", "semantic"])
def test_everything_is_found(kind: str, client: httpx.Client) -> None:
    asked = {"kind": kind, "points_per_side": 3, "min_quality": 0, "min_stability": 0} | NAMES
    found = client.post(f"/api/images/{upload(client, photo())}/everything", json=asked).json()
    assert found["kind"] == kind
    assert all(rle.area(one["rle"]["counts"].encode()) == one["area"] for one in found["masks"])


def test_masks_become_files(client: httpx.Client) -> None:
    halves = np.zeros((2, 6, 8), bool)
    halves[0, :, :4] = halves[1, :3] = True
    masks = [{"rle": {"size": [6, 8], "counts": rle.encode(mask).decode()}, "name": "car"} for mask in halves]
    png = client.post("/api/masks.png", json={"file_name": "a photo\u00e9.jpg", "masks": masks[:1]})
    assert png.headers["content-disposition"] == 'attachment; filename="a_photo_.jpg.png"'
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png.content))) == 255, halves[0])
    both = np.asarray(Image.open(io.BytesIO(client.post("/api/masks.png", json={"masks": masks}).content)))
    np.testing.assert_array_equal(both, np.where(halves[1], 2, np.where(halves[0], 1, 0)))
    assert [one["counts"].encode() for one in client.post("/api/masks.rle.json", json={"masks": masks}).json()] == [
        rle.encode(mask) for mask in halves
    ]
    document = client.post("/api/masks.coco.json", json={"masks": masks}).json()
    assert [one["bbox"] for one in document["annotations"]] == [[0, 0, 4, 6], [0, 0, 8, 3]]
    assert document["categories"] == [{"id": 1, "name": "car"}]


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/api/images", b"no image at all", 415, "no_image"),
        ("/api/images", b"", 415, "no_image"),
        ("/api/images", photo()[:500], 415, "no_image"),
        ("/api/images", photo(height=300, width=300, kind="JPEG"), 413, "too_large"),
        ("/api/images", b"x" * 200_001, 413, "too_large"),
        ("/api/images/" + "0" * 32 + "/answer", json.dumps(click(1, 1)).encode(), 404, "unknown_image"),
        ("/api/images/nothing/answer", json.dumps(click(1, 1)).encode(), 422, "image: "),
        ("/api/images/{image}/answer", b"{", 422, "malformed"),
        ("/api/images/{image}/answer", b"[]", 422, "malformed"),
        ("/api/images/{image}/answer", b"{}", 422, "positive click or a box"),
        ("/api/images/{image}/answer", json.dumps(click(91, 3)).encode(), 422, "outside the image"),
        ("/api/images/{image}/answer", b'{"points": [{"x": NaN, "y": 1}]}', 422, "points.0.x"),
        ("/api/images/{image}/answer", json.dumps(click(1, 1, color=3)).encode(), 422, "color"),
        ("/api/images/{image}/answer", json.dumps(click(1, 1, objects=[" "])).encode(), 422, "objects.0"),
        ("/api/images/{image}/answer", json.dumps(click(1, 1, objects=["a"] * 65)).encode(), 422, "objects"),
        ("/api/images/{image}/answer", b'{"box": {"x1": 9, "y1": 9, "x2": 9, "y2": 20}}', 422, "no area"),
        ("/api/images/{image}/everything", b'{"kind": "panoptic"}', 422, "needs names"),
        ("/api/images/{image}/everything", b'{"points_per_side": 400}', 422, "points_per_side"),
        ("/api/masks.png", b'{"masks": [{"rle": {"size": [6, 8], "counts": "zz"}}]}', 422, "counts"),
        ("/api/masks.png", b'{"masks": [{"rle": {"size": [60000, 60000], "counts": "0"}}]}', 413, "too_large"),
        ("/api/masks.png", b'{"masks": []}', 422, "masks"),
        ("/api/nothing", b"", 404, "no_such_call"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_its_place(
    path: str, body: bytes, status: int, says: str, client: httpx.Client
) -> None:
    image = upload(client, photo()) if "{image}" in path else ""
    answer = client.post(path.replace("{image}", image), content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"code", "message"}
    assert says in answer.text
    assert client.get("/api/about").json()["waiting"] == 0


def test_an_image_whose_features_are_gone_is_encoded_anew_and_one_whose_file_is_gone_is_asked_for(
    client: httpx.Client,
) -> None:
    images = [upload(client, photo(seed)) for seed in range(5)]
    about = client.get("/api/about").json()
    assert about["encoded_images"] == 3
    statuses = [client.post(f"/api/images/{image}/answer", json=click(5, 5)).status_code for image in images]
    assert statuses == [404, 200, 200, 200, 200]


def test_who_comes_while_too_many_wait_is_told_when_to_come_again(predictor: Predictor) -> None:
    service = serving(predictor, replace(LIMITS, max_waiting=1))
    begun, go_on = threading.Event(), threading.Event()
    encode = service.predictor.encode

    def slow(photos: object) -> object:
        begun.set()
        go_on.wait(30)
        return encode(photos)  # type: ignore[arg-type]

    service.predictor.encode = slow  # type: ignore[assignment, method-assign]
    try:
        with listening(service) as client, ThreadPoolExecutor(2) as pool:
            first = pool.submit(client.post, "/api/images", content=photo(1))
            assert begun.wait(30)
            second = pool.submit(client.post, "/api/images", content=photo(2))
            while service.thread.taken < 2:
                pass
            refused = client.post("/api/images", content=photo(3))
            assert refused.status_code == 429
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            go_on.set()
            assert [one.result().status_code for one in (first, second)] == [200, 200]
            assert client.post("/api/images", content=photo(3)).status_code == 200
    finally:
        go_on.set()
        del service.predictor.encode
        service.thread.close()


def test_many_clients_at_once_have_their_own_images_and_names(predictor: Predictor, model: SemanticSam) -> None:
    service = serving(predictor, replace(LIMITS, max_waiting=64, encoded_images=32, photos=32))

    def ask(client: httpx.Client, number: int) -> list[dict[str, object]]:
        image = upload(client, photo(number))
        name = f"name {number}"
        found = client.post(f"/api/images/{image}/answer", json=click(10 + number, 20, objects=[name])).json()
        assert all([one["name"] for one in mask["objects"]] == [name] for mask in found["masks"])
        masks: list[dict[str, object]] = found["masks"]
        return masks

    with listening(service) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: ask(client, number), range(16)))
    own = Predictor(model, ImageSize(64, 96))
    for number, masks in enumerate(answers):
        own.set_image(photo(number))
        expected = own.predict(points_xy=[[10 + number, 20]]).masks[0]
        found = {mask["rle"]["counts"] for mask in masks}  # type: ignore[index]
        assert found == {rle.encode(mask).decode() for mask in expected if mask.any()}
    service.thread.close()


def test_what_is_kept_is_bounded_in_bytes_and_number() -> None:
    kept: Kept[str] = Kept(10, 3)
    for key, size in (("a", 4), ("b", 4), ("c", 1)):
        kept.put(key, key, size)
    assert kept.get("a") == "a"
    kept.put("d", "d", 1)  # The fourth: b was used least recently.
    assert [kept.get(key) for key in "abcd"] == ["a", None, "c", "d"]
    kept.put("e", "e", 11)
    assert kept.get("e") is None
    kept.put("f", "f", 9)
    assert [kept.get(key) for key in "acdf"] == [None, None, "d", "f"]
    assert kept.num_bytes == 10


def test_the_page_and_its_files_are_there_and_ask_nobody_else(client: httpx.Client) -> None:
    for path, kind in (("", "text/html"), ("app.js", "javascript"), ("masks.js", "javascript"), ("style.css", "css")):
        answer = client.get(f"/{path}")
        assert answer.status_code == 200
        assert kind in answer.headers["content-type"]
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "http://" not in answer.text
        assert "https://" not in answer.text
    assert client.get("/../service.py").status_code == 404
    assert client.get("/docs").status_code == 404


def test_every_call_is_described_with_its_refusals(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()
    assert len(described["paths"]) == 7
    for calls in described["paths"].values():
        for call in calls.values():
            assert {"200", "404", "413", "415", "422", "429"} <= call["responses"].keys()
            assert call["responses"]["422"]["content"]["application/json"]["schema"]["$ref"].endswith("/Problem")
