"""The service fills, embeds, refuses in words, keeps limits, and renews models without a gap."""

import base64
import io
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import ROOT, draw_image
from model_helpers import save_small_model
from PIL import Image
from serve_helpers import ask, multipart, post, serving

from pipelines.errors import UserError
from pipelines.serve import application, served
from pipelines.serve import run as serve_run
from pipelines.serve.config import ServeConfig, token_from_environment
from pipelines.serve.guard import OPEN_PATHS
from pipelines.serve.methods import METHODS
from pipelines.serve.routes import PAGE
from pipelines.serve.served import name_of, newest_model
from pipelines.serve.service import Service

IMAGE = draw_image(3, 150, 200)
HOLE = np.zeros((150, 200), bool)
HOLE[100:140, 5:60] = True


def encode(array: np.ndarray, form: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, form)
    return buffer.getvalue()


def decode(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


PHOTO, MASK = encode(IMAGE), encode(HOLE.astype(np.uint8) * 255)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Service]]:
    folder = tmp_path_factory.mktemp("models")
    models = [save_small_model(folder / name, seed) for seed, name in enumerate(("one", "two"))]
    with serving(f"one={models[0]}", f"two={models[1]}", store=folder) as found:
        yield found


@pytest.fixture(scope="module")
def url(service: tuple[str, Service]) -> str:
    return service[0]


@pytest.mark.parametrize("model", ["", "one", "two", *METHODS])
def test_only_the_hole_changes_with_every_model(url: str, model: str) -> None:
    answer = post(f"{url}/fill", image=PHOTO, mask=MASK, model=model)
    assert answer.status == 200 and answer.headers["content-type"] == "image/png"
    filled = decode(answer.body)
    assert (filled[~HOLE] == IMAGE[~HOLE]).all()
    assert (filled[HOLE] != IMAGE[HOLE]).any(axis=1).mean() > 0.5
    assert answer.headers["x-model"] == (model or "one")
    assert answer.headers["x-pixels"] == str(HOLE.sum())


def test_json_and_multipart_say_the_same(url: str) -> None:
    body = {"image": base64.b64encode(PHOTO).decode(), "mask": base64.b64encode(MASK).decode()}
    answer = ask(f"{url}/fill", json.dumps(body).encode(), content_type="application/json")
    plain = post(f"{url}/fill", image=PHOTO, mask=MASK)
    assert (decode(base64.b64decode(answer.json["image"])) == decode(plain.body)).all()
    assert answer.json["model"] == "one"


def test_an_image_becomes_features(url: str) -> None:
    found = post(f"{url}/embed", image=PHOTO, model="two").json
    assert found["model"] == "two" and len(found["features"]) == 8  # the bottleneck
    assert np.isfinite(found["features"]).all()


@pytest.mark.parametrize(
    ("parts", "status", "message"),
    [
        ({"image": PHOTO}, 400, "mask is missing"),
        ({"image": b"GIF89a", "mask": MASK}, 422, "GIF; images must be JPEG, PNG, WebP or AVIF"),
        ({"image": PHOTO[:200], "mask": MASK}, 422, "the image: "),
        ({"image": PHOTO, "mask": b"text"}, 422, "its mask: not an image"),
        ({"image": PHOTO, "mask": encode(HOLE.astype(np.uint8) * 0)}, 422, "hides nothing"),
        ({"image": PHOTO, "mask": encode(np.uint8(255) - HOLE * np.uint8(255))}, 422, "other way"),
        ({"image": PHOTO, "mask": MASK, "model": "three"}, 404, "one of one, two, telea"),
        ({"image": PHOTO, "mask": MASK, "polarity": "x"}, 400, "one of auto, white, black"),
        ({"image": PHOTO, "mask": MASK, "model": "x" * 5000}, 400, "multipart body is broken"),
    ],
)
def test_what_cannot_be_done_is_said(
    url: str, parts: dict[str, bytes | str], status: int, message: str
) -> None:
    answer = post(f"{url}/fill", **parts)
    assert answer.status == status
    assert message in answer.json["error"]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"{" * 100_000, "application/json", 400),
        (b'{"image": "?", "mask": "?"}', "application/json", 400),
        (b"a=b", "application/x-www-form-urlencoded", 415),
        (b"--x", "multipart/form-data", 400),
        (b"--x", "multipart/form-data; boundary=y", 400),
    ],
)
def test_a_broken_body_is_an_answer(url: str, body: bytes, kind: str, status: int) -> None:
    answer = ask(f"{url}/fill", body, content_type=kind)
    assert answer.status == status and answer.json["error"]


def test_limits_of_bytes_and_pixels(tmp_path: Path) -> None:
    model = save_small_model(tmp_path / "model")
    with serving(model, store=tmp_path, max_bytes=20_000, max_pixels=20_000) as (url, _):
        assert post(f"{url}/fill", image=bytes(20_001), mask=b"").status == 413
        large = encode(np.zeros((200, 200, 3), np.uint8))
        answer = post(f"{url}/fill", image=large, mask=MASK)
        assert answer.status == 413 and "start with --max-pixels" in answer.json["error"]
        assert ask(f"{url}/hole?strategy=central&width=200&height=200").status == 413


def test_more_requests_than_wait_are_answered_at_once(tmp_path: Path) -> None:
    model = save_small_model(tmp_path / "model")
    with serving(model, store=tmp_path, max_waiting=1, timeout_s=1) as (url, service):
        free, begun = threading.Event(), threading.Event()

        def slow(jobs: object) -> list[np.ndarray]:
            begun.set()
            free.wait(30)
            return [IMAGE]

        service.batcher._work = slow  # type: ignore[assignment]
        answers = []
        first = threading.Thread(
            target=lambda: answers.append(post(f"{url}/fill", image=PHOTO, mask=MASK))
        )
        first.start()
        assert begun.wait(30)
        second = post(f"{url}/fill", image=PHOTO, mask=MASK)
        assert second.status == 503 and second.headers["retry-after"] == "1"
        first.join()
        free.set()
        assert answers[0].status == 504


def test_requests_that_wait_are_filled_together(service: tuple[str, Service]) -> None:
    url, inner = service
    ask(f"{url}/metrics")
    answers: list[int] = []
    clients = [
        threading.Thread(
            target=lambda: answers.append(post(f"{url}/fill", image=PHOTO, mask=MASK).status)
        )
        for _ in range(12)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert answers == [200] * 12
    assert sum(inner.batcher.sizes) == 12 and len(inner.batcher.sizes) < 12


def test_a_service_beyond_this_machine_needs_its_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_small_model(tmp_path / "model")
    with serving(model, store=tmp_path, token="a long secret indeed") as (url, _):
        assert ask(f"{url}/models").status == 401
        assert ask(f"{url}/models", authorization="Bearer wrong").status == 401
        assert ask(f"{url}/models", authorization="Bearer a long secret indeed").status == 200
        assert ask(f"{url}/healthz").status == 200
        assert post(f"{url}/fill", image=PHOTO, mask=MASK).status == 401
        for path in OPEN_PATHS:
            assert ask(f"{url}{path}").status == 200
    monkeypatch.setenv("CONTEXT_ENCODER_TOKEN", "short")
    with pytest.raises(ValueError, match="it must have 16 or more"):
        token_from_environment()


def test_pages_of_other_sites_are_refused(url: str) -> None:
    assert ask(f"{url}/models", host="evil.example").status == 403
    assert ask(f"{url}/models", origin="http://evil.example").status == 403
    assert ask(f"{url}/models", origin=url).status == 200
    assert ask(f"{url}/models", host=f"localhost:{url.rpartition(':')[2]}").status == 200


def test_the_page_asks_nobody_else_for_anything(url: str) -> None:
    for path in PAGE:
        answer = ask(f"{url}{path}")
        assert answer.status == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        text = answer.body.decode()
        assert "https://" not in text and "style=" not in text and "onclick" not in text
        assert "http://" not in text.replace("http://HOST:PORT", "")
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_what_there_is_can_be_asked(url: str) -> None:
    found = ask(f"{url}/models").json
    assert [model["name"] for model in found["models"]] == ["one", "two", *METHODS]
    assert ask(f"{url}/healthz").json == {"status": "ok"}
    sample = decode(ask(f"{url}/samples/{found['samples'][0]}").body)
    assert min(sample.shape[:2]) == 448
    assert ask(f"{url}/samples/..%2f..%2fsecret").status == 404
    paths = ask(f"{url}/openapi.json").json["paths"]
    assert {"/fill", "/embed", "/models", "/healthz", "/metrics"} <= paths.keys()
    hole = decode(ask(f"{url}/hole?strategy=central&width=300&height=200").body)
    assert hole.shape == (200, 300) and 0.15 < (hole > 0).mean() < 0.25
    assert ask(f"{url}/hole?strategy=central&width=1&height=1").status == 422
    post(f"{url}/fill", image=PHOTO, mask=MASK)
    text = ask(f"{url}/metrics").body.decode()
    assert 'context_encoder_requests_total{path="/fill",replica="test",status="200"}' in text
    assert "context_encoder_batch_photographs_bucket" in text


def test_nothing_of_a_request_is_stored(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even for a moment: a large upload makes no temporary file."""
    noise = encode(np.random.default_rng(0).integers(0, 256, (700, 900, 3)).astype(np.uint8))
    assert len(noise) > 1 << 20  # above this Starlette's own parser writes to a file
    made: list[object] = []
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda self: made.append(self))
    hole = np.zeros((700, 900), np.uint8)
    hole[:9, :9] = 255
    body, kind = multipart(image=noise, mask=encode(hole))
    assert ask(f"{url}/fill", body, content_type=kind).status == 200
    assert made == []


def test_models_are_named_after_what_they_are() -> None:
    assert name_of("models:/context-encoder@champion")[0] == "context-encoder"
    assert name_of("old=models:/context-encoder@previous")[0] == "old"
    assert name_of("store/pretrain/0123/model")[0] == "0123"


def test_mistakes_are_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train one with `make run`"):
        newest_model(str(tmp_path))
    model = save_small_model(tmp_path / "model")
    with pytest.raises(UserError, match="is given twice"), serving(model, model, store=tmp_path):
        pass
    with pytest.raises(ValueError, match="port is 70000"):
        ServeConfig(port=70000)
    with serving(model, store=tmp_path) as (url, _):
        busy = ServeConfig(model=(model,), port=int(url.rpartition(":")[2]), store=str(tmp_path))
        with pytest.raises(UserError, match="cannot listen"):
            serve_run.serve_models(busy)
    with pytest.raises(ValueError, match=r"args holds \['modle'\]"):
        application.build({"modle": "x"})


def test_the_newest_model_of_a_store_is_found(tmp_path: Path) -> None:
    for number, name in enumerate(("old", "new")):
        folder = tmp_path / "pretrain" / name / "model"
        save_small_model(folder)
        os.utime(folder / "model.json", (number, number))
    assert newest_model(str(tmp_path)) == str(tmp_path / "pretrain" / "new")


def test_the_files_of_the_page_are_part_of_the_package() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert '"pipelines.serve" = ["page/*"]' in text
    assert {name for name, _ in PAGE.values()} == {
        path.name for path in (ROOT / "pipelines/serve/page").iterdir()
    }


def test_a_moved_alias_renews_the_model_and_no_request_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry is a dict here; tests of tracking speak to a real one."""
    folders = {v: save_small_model(tmp_path / v, int(v)) for v in ("1", "2")}
    alias = {"champion": "1"}

    def by_alias(uri: str, name: str, wanted: str) -> SimpleNamespace:
        if alias["champion"] == "away":
            raise UserError("the server is away")
        return SimpleNamespace(version=alias[wanted])

    monkeypatch.setattr(served.client, "require_there", lambda uri: None)
    monkeypatch.setattr(served.registry, "by_alias", by_alias)
    monkeypatch.setattr(
        served, "resolve_model", lambda *_, **__: SimpleNamespace(uri=folders[alias["champion"]])
    )
    with serving("models:/filler@champion", store=tmp_path, reload_s=1) as (url, service):
        answers: list[tuple[int, str]] = []

        def client() -> None:
            while not answers or answers[-1][1] != "2":
                answer = post(f"{url}/fill", image=PHOTO, mask=MASK)
                answers.append((answer.status, answer.headers.get("x-version", "")))

        clients = [threading.Thread(target=client) for _ in range(3)]
        for one in clients:
            one.start()
        alias["champion"] = "2"
        for one in clients:
            one.join(60)
        assert {status for status, _ in answers} == {200}
        assert {version for _, version in answers} <= {"1", "2"}
        assert ask(f"{url}/models").json["models"][0]["version"] == "2"
        alias["champion"] = "away"
        assert service.models.refresh() == [] and service.models.failed_reloads >= 1
        assert post(f"{url}/fill", image=PHOTO, mask=MASK).headers["x-version"] == "2"
