"""What the routes answer is what the library gives."""

import base64
import io
import json
import os
import shutil
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from PIL import Image

from diptych.index.protocol import Index
from diptych.inference import load_model, loaded
from diptych.inference.explain import explain
from diptych.inference.loaded import InferencePrecision, LoadedBundle
from diptych.search.collection import open_or_create, update
from diptych.server.app import create_app
from diptych.server.thumbnails import render_heat_map
from tests.server.site import Site, served

TEXTS = ["a red circle", "two dogs", "a red circle"]


def in_base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


@pytest.fixture
def some(pictures: Path) -> list[Path]:
    return sorted(pictures.iterdir())[:3]


def test_embeddings_are_the_bundles(site: Site, clip: LoadedBundle, some: list[Path]) -> None:
    found = site.post("/v1/embed", {"texts": TEXTS, "images": [in_base64(path) for path in some]})
    np.testing.assert_allclose(found["texts"], clip.encode_texts(TEXTS), atol=1e-6)
    np.testing.assert_allclose(found["images"], clip.encode_images(some), atol=1e-6)
    assert found["dim"] == 16
    assert found["model"] == clip.identity


def test_embeddings_as_bytes_of_their_numbers(site: Site) -> None:
    plain = site.post("/v1/embed", {"texts": TEXTS})["texts"]
    coded = site.post("/v1/embed", {"texts": TEXTS, "encoding": "base64"})["texts"]
    for row, numbers in zip(coded, plain, strict=True):
        assert np.frombuffer(base64.b64decode(row), dtype="<f4").tolist() == numbers


def test_similarity_and_classes_are_the_bundles(site: Site, clip: LoadedBundle, some: list[Path]) -> None:
    images = [in_base64(path) for path in some]
    found = site.post("/v1/similarity", {"images": images, "texts": TEXTS[:2]})
    expected = clip.similarity(some, TEXTS[:2])
    np.testing.assert_allclose(found["cosine"], expected.cosine, atol=1e-6)
    np.testing.assert_allclose(found["probability"], expected.probability, atol=1e-6)

    body = {"images": images, "classes": ["red", "blue"], "templates": ["a {} circle", "{}"], "threshold": 0.999}
    answers = site.post("/v1/classify", body)["images"]
    known = clip.classify(some, ["red", "blue"], templates=["a {} circle", "{}"], threshold=0.999)
    for answer, classification in zip(answers, known, strict=True):
        assert [score["name"] for score in answer["scores"]] == [score.name for score in classification.scores]
        assert answer["scores"][0]["cosine"] == pytest.approx(classification.scores[0].cosine, abs=1e-6)
        assert answer["best"] == (classification.best and classification.best.name)


def test_pictures_as_a_form(site: Site, clip: LoadedBundle, some: list[Path]) -> None:
    boundary = uuid4().hex
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="images"; filename="{path.name}"\r\n'
        f"Content-Type: image/png\r\n\r\n".encode()
        + path.read_bytes()
        + b"\r\n"
        for path in some
    ]
    parts += [
        f'--{boundary}\r\nContent-Disposition: form-data; name="texts"\r\n\r\n{text}\r\n'.encode() for text in TEXTS[:2]
    ]
    body = b"".join(parts) + f"--{boundary}--\r\n".encode()
    answer = site.ask("POST", "/v1/similarity", body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})
    np.testing.assert_allclose(answer.json["cosine"], clip.similarity(some, TEXTS[:2]).cosine, atol=1e-6)


def test_base64_in_all_its_forms(site: Site, some: list[Path]) -> None:
    path = next(path for path in some if {"+", "/"} <= set(in_base64(path)) and in_base64(path).endswith("="))
    plain = in_base64(path)
    lines = "\r\n".join(plain[start : start + 76] for start in range(0, len(plain), 76))
    urls = base64.urlsafe_b64encode(path.read_bytes()).decode()
    assert urls != plain
    forms = [plain, lines, f"{lines}\n", urls, urls.rstrip("="), plain.rstrip("="), f"data:image/png;base64,{lines}"]
    rows = site.post("/v1/embed", {"images": forms})["images"]
    assert len(rows) == 7
    assert all(row == rows[0] for row in rows)
    for wrong in ("x.jpg", "https://elsewhere.example/x.jpg", plain[:-3] + "é", "A"):
        refused = site.ask("POST", "/v1/embed", {"images": [wrong]})
        assert refused.status == 422
        assert "must be a picture's file in base64; paths and URLs are not read" in refused.json["detail"]


def test_head_answers_as_get_without_the_content(site: Site, index: Index) -> None:
    key = index.entries()[0].digest
    paths = [
        "/",
        "/page/main.js",
        "/v1/info",
        "/v1/models",
        "/healthz",
        "/readyz",
        "/openapi.json",
        f"/v1/images/{key}",
    ]
    paths += [f"/v1/images/{key}/{rest}" for rest in ("file", "thumb?px=160", "heat?text=red")]
    for path in paths:
        head, get = site.ask("HEAD", path), site.ask("GET", path)
        assert (head.status, head.content) == (200, b"")
        assert get.content
        for name in ("content-length", "content-type", "cache-control", "x-content-type-options"):
            assert head.headers[name] == get.headers[name]
    assert site.ask("HEAD", "/metrics").status == 200
    assert site.ask("HEAD", "/v1/nothing").status == 404
    assert site.ask("HEAD", "/v1/embed").status == 405


def test_refusals_say_what_to_do(site: Site) -> None:
    cases = (
        (site.ask("GET", "/embeddings"), 404, "did you mean /v1/embeddings?"),
        (site.ask("GET", "/v1/info/"), 404, "did you mean /v1/info?"),
        (site.ask("DELETE", "/v1/info"), 405, "DELETE is not allowed at this path; allowed: GET, HEAD"),
        (site.ask("GET", "/v1/search"), 405, "allowed: POST"),
        (site.ask("PUT", "/page/main.js"), 405, "PUT is not allowed at this path; allowed: GET, HEAD"),
        (site.ask("POST", "/v1/search", {"text": "a", "offset": 10_000}), 422, "use where to narrow the search"),
        (site.ask("POST", "/v1/embed", {"text": ["a"]}), 422, "unknown field 'text'; did you mean 'texts'?"),
        (site.ask("POST", "/v1/embed", {"texts": "a"}), 422, "body/texts: must be a valid array, even of one item"),
        (site.ask("POST", "/v1/embed", b'{"texts": ["a"'), 400, "EOF while parsing a list at line 1 column 14"),
        (site.ask("POST", "/v1/embed", {}, {"Content-Encoding": "gzip"}), 415, "without Content-Encoding"),
        (site.ask("POST", "/v1/embed", b"a", {"Content-Type": "text/plain"}), 415, "application/json, or a form"),
        (site.ask("POST", "/v1/search", {"text": "a", "where": "colour = 3"}), 422, "where at 1: unknown field"),
        (site.ask("GET", "/v1/images/abc"), 404, "/v1/search returns the ids"),
    )
    for answer, status, said in cases:
        assert (answer.status, said in answer.json["detail"]) == (status, True), answer.json


def test_search_finds_what_the_index_finds(site: Site, clip: LoadedBundle, index: Index) -> None:
    (expected,) = index.search(clip.encode_texts(["a red circle"]), top=5)
    found = site.post("/v1/search", {"text": "a red circle", "limit": 5})
    assert [one["id"] for one in found["results"]] == [one.entry.digest for one in expected]
    assert [one["name"] for one in found["results"]] == [Path(one.entry.key).name for one in expected]
    np.testing.assert_allclose([one["score"] for one in found["results"]], [one.score for one in expected], atol=1e-6)
    assert found["has_more"]


def test_pages_join_to_the_whole(site: Site) -> None:
    whole = site.post("/v1/search", {"text": "a circle", "limit": 48})
    assert len(whole["results"]) == 48
    assert not whole["has_more"]
    pages = [site.post("/v1/search", {"text": "a circle", "limit": 20, "offset": start}) for start in (0, 20, 40, 60)]
    assert [one["id"] for page in pages for one in page["results"]] == [one["id"] for one in whole["results"]]
    assert [page["has_more"] for page in pages] == [True, True, False, False]


def test_terms_are_weighed(site: Site, clip: LoadedBundle, index: Index, some: list[Path]) -> None:
    known = index.entries()[7].digest
    terms = [
        {"text": "a red circle", "weight": 0.5},
        {"image": in_base64(some[0])},
        {"id": known, "weight": -0.75},
    ]
    total = 0.5 * clip.encode_texts(["a red circle"])[0] + clip.encode_images(some[:1])[0]
    total = total - 0.75 * index.vectors([known])[known]
    (expected,) = index.search((total / np.linalg.norm(total))[None].astype(np.float32), top=4)
    found = site.post("/v1/search", {"terms": terms, "limit": 4})
    assert [one["id"] for one in found["results"]] == [one.entry.digest for one in expected]


def test_a_picture_is_most_like_itself(site: Site, index: Index) -> None:
    entry = index.entries()[11]
    first = site.post("/v1/search", {"terms": [{"id": entry.digest}], "limit": 1})["results"][0]
    assert first["id"] == entry.digest
    assert first["score"] == pytest.approx(1, abs=1e-5)


def test_filters(site: Site) -> None:
    found = site.post("/v1/search", {"text": "a circle", "where": "width >= 90", "limit": 200})["results"]
    assert len(found) == 6
    assert all(one["width"] >= 90 for one in found)
    wrong = site.ask("POST", "/v1/search", {"text": "x", "where": "colour = 3"})
    assert wrong.status == 422
    assert "colour" in wrong.json["detail"]


def test_pictures_come_as_they_are_and_small(site: Site, index: Index) -> None:
    entry = index.entries()[0]
    whole = site.ask("GET", f"/v1/images/{entry.digest}/file")
    assert whole.content == Path(entry.key).read_bytes()
    assert whole.headers["content-type"] == "image/png"
    for px in (160, 320, 640):
        thumb = site.ask("GET", f"/v1/images/{entry.digest}/thumb?px={px}")
        assert thumb.headers["content-type"] == "image/webp"
        assert max(Image.open(io.BytesIO(thumb.content)).size) <= px
    told = site.ask("GET", f"/v1/images/{entry.digest}").json
    assert told["name"] == told["path"] == Path(entry.key).name
    assert "/" not in json.dumps(told)  # Not the folder, which is above all pictures.


def test_heat_is_a_picture_of_what_the_model_sees(site: Site, index: Index) -> None:
    heat = site.ask("GET", f"/v1/images/{index.entries()[0].digest}/heat?text=red")
    assert heat.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(heat.content)).size == (32, 32)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_heat_explains_the_picture_that_was_indexed(
    tiny_bundle: Path, tmp_path: Path, precision: InferencePrecision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a smaller copy of it: in one of a panorama the model sees other pixels."""
    monkeypatch.setattr(load_model, "cpu_has", lambda *_: True)
    monkeypatch.setattr(load_model, "has_fast_int8", lambda: True)
    noise = np.random.default_rng(0).integers(0, 255, (150, 3000, 3), dtype=np.uint8)
    (tmp_path / "pictures").mkdir()
    Image.fromarray(noise).save(tmp_path / "pictures" / "panorama.png")
    clip = loaded.load(tiny_bundle, device="cpu", precision=precision)
    with open_or_create(tmp_path / "index", clip) as opened:
        update(opened, clip, [tmp_path / "pictures"])
        (entry,) = opened.entries()
        with served(create_app(clip, opened)) as own:
            heat = own.ask("GET", f"/v1/images/{entry.digest}/heat?text=red")
    assert heat.status == 200
    expected = explain(clip.embedder, entry.key, ["red"])
    assert heat.content == render_heat_map(expected.picture, expected.heat[0])


def test_a_picture_that_has_changed_is_not_shown(clip: LoadedBundle, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("kept", "changed", "gone"):
        Image.new("RGB", (8, 8), {"kept": "red", "changed": "blue", "gone": "green"}[name]).save(folder / f"{name}.png")
    with open_or_create(tmp_path / "index", clip) as opened:
        update(opened, clip, [folder])
        ids = {Path(entry.key).stem: entry.digest for entry in opened.entries()}
        Image.new("RGB", (9, 9), "white").save(folder / "changed.png")
        (folder / "gone.png").unlink()
        with served(create_app(clip, opened)) as own:
            assert own.ask("GET", f"/v1/images/{ids['kept']}/file").status == 200
            assert own.ask("GET", f"/v1/images/{ids['changed']}/file").status == 410
            assert own.ask("GET", f"/v1/images/{ids['gone']}/thumb").status == 410
            assert own.ask("GET", f"/v1/images/{ids['gone']}/heat?text=red").status == 410


def test_another_file_with_the_same_content_is_shown(clip: LoadedBundle, tmp_path: Path) -> None:
    from diptych.search.collection import open_or_create, update

    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (40, 40), "red").save(folder / "a.png")
    paths = [folder / f"{name}.png" for name in "abcd"]
    for path in paths[1:]:
        shutil.copy(paths[0], path)
    content = paths[0].read_bytes()
    with open_or_create(tmp_path / "index", clip) as opened:
        update(opened, clip, [folder])
        (key,) = {entry.digest for entry in opened.entries()}
        with served(create_app(clip, opened)) as own:
            drawn = own.ask("GET", f"/v1/images/{key}/heat?text=red").content
            paths[0].unlink()
            paths[1].write_bytes(content + b"changed")
            paths[2].unlink()
            paths[2].symlink_to(paths[3])
            assert own.ask("GET", f"/v1/images/{key}/file").content == content
            assert own.ask("GET", f"/v1/images/{key}/thumb?px=160").status == 200
            assert own.ask("GET", f"/v1/images/{key}/heat?text=red").content == drawn
            paths[3].unlink()
            for rest in ("file", "thumb?px=320", "heat?text=red"):
                assert own.ask("GET", f"/v1/images/{key}/{rest}").status == 410


def test_only_what_was_indexed_is_shown(clip: LoadedBundle, tmp_path: Path) -> None:
    folder, other = tmp_path / "pictures", tmp_path / "other.bmp"
    (folder / "inner").mkdir(parents=True)
    names = ["kept", "touched", "swapped", "fifo", "zero", "linked", "inner/moved"]
    for number, name in enumerate(names):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{name}.bmp")
    (folder / "alias.bmp").symlink_to(folder / "kept.bmp")
    Image.new("RGB", (8, 8), "white").save(other)
    with open_or_create(tmp_path / "index", clip) as opened:
        update(opened, clip, [folder])
        ids = {Path(entry.key).stem: entry.digest for entry in opened.entries()}
        os.utime(folder / "touched.bmp", (1, 1))
        before = (folder / "swapped.bmp").stat()
        (folder / "swapped.bmp").write_bytes(other.read_bytes())  # Of the same size, and soon of the same time.
        os.utime(folder / "swapped.bmp", ns=(before.st_atime_ns, before.st_mtime_ns))
        shutil.copy2(folder / "linked.bmp", tmp_path / "linked.bmp")
        for name in ("fifo", "zero", "linked"):
            (folder / f"{name}.bmp").unlink()
        os.mkfifo(folder / "fifo.bmp")
        (folder / "zero.bmp").symlink_to("/dev/zero")
        (folder / "linked.bmp").symlink_to(tmp_path / "linked.bmp")  # Even the same content.
        (folder / "inner").rename(tmp_path / "inner")
        (folder / "inner").symlink_to(tmp_path / "inner")
        with served(create_app(clip, opened)) as own:
            statuses = {name: own.ask("GET", f"/v1/images/{id_}/file").status for name, id_ in ids.items()}
            assert own.ask("GET", f"/v1/images/{ids['kept']}/thumb").status == 200
    shown = {"kept", "touched", "alias"}
    assert statuses == {name: 200 if name in shown else 410 for name in ids}


def test_every_example_of_the_description_works(site: Site) -> None:
    paths = site.ask("GET", "/openapi.json").json["paths"]
    tried = 0
    for path, routes in paths.items():
        content = routes.get("post", {}).get("requestBody", {}).get("content", {})
        for example in content.get("application/json", {}).get("examples", {}).values():
            site.post(path, example["value"])
            tried += 1
    assert tried == 9


def test_without_an_index_the_model_serves_alone(clip: LoadedBundle) -> None:
    with served(create_app(clip)) as alone:
        assert alone.ask("GET", "/v1/info").json["pictures"] is None
        assert len(alone.post("/v1/embed", {"texts": ["a"]})["texts"]) == 1
        refused = alone.ask("POST", "/v1/search", {"text": "a"})
    assert refused.status == 404
    assert "--index" in refused.json["detail"]


def test_state(site: Site, clip: LoadedBundle) -> None:
    assert site.ask("GET", "/healthz").json == {"status": "ok"}
    assert site.ask("GET", "/readyz").json == {"status": "ready"}
    told = site.ask("GET", "/v1/info").json
    assert (told["pictures"], told["dim"], told["model"]) == (48, 16, clip.identity)
    counted = site.ask("GET", "/metrics").content.decode()
    assert 'diptych_requests_total{route="/healthz",status="200"}' in counted
    assert "diptych_batch_size_bucket" in counted


def test_texts_that_are_too_long_are_counted(site: Site) -> None:
    def num_cut() -> float:
        counted = site.ask("GET", "/metrics").content.decode()
        return float(
            next(line for line in counted.splitlines() if line.startswith("diptych_texts_cut_total")).split()[1]
        )

    before = num_cut()
    site.post("/v1/embed", {"texts": ["word " * 200, "a", "other " * 200]})
    assert num_cut() == before + 2
