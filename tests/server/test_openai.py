"""OpenAI's own client, and LangChain's, work unchanged; what is refused is refused with the reason."""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from openai import AuthenticationError, NotFoundError, OpenAI, RateLimitError, UnprocessableEntityError

from diptych.inference.loaded import LoadedBundle
from diptych.server import api, openai
from diptych.server.api import encode_embeddings
from diptych.server.app import create_app
from diptych.server.limits import Limits
from tests.server.site import Site, served

PATH = "/v1/embeddings"


@pytest.fixture
def theirs(site: Site) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{site.url}/v1", api_key="none is needed", max_retries=0) as client:
        yield client


def test_openais_client_works_unchanged(theirs: OpenAI, clip: LoadedBundle) -> None:
    found = theirs.embeddings.create(model="any", input=["a red circle", "two dogs"])
    np.testing.assert_allclose(
        [row.embedding for row in found.data], clip.encode_texts(["a red circle", "two dogs"]), atol=1e-6
    )
    assert [row.index for row in found.data] == [0, 1]
    assert found.usage.prompt_tokens > 4
    single = theirs.embeddings.create(model="any", input="a red circle", encoding_format="float", dimensions=16)
    np.testing.assert_allclose(single.data[0].embedding, found.data[0].embedding, atol=1e-6)


def test_the_reason_of_a_refusal_is_in_the_message(theirs: OpenAI) -> None:
    with pytest.raises(
        UnprocessableEntityError, match="Error code: 422 - dimensions is 8; this model supports only 16"
    ) as refused:
        theirs.embeddings.create(model="any", input="a", dimensions=8)
    assert (refused.value.type, refused.value.code) == ("invalid_request_error", "unprocessable_entity")
    with pytest.raises(UnprocessableEntityError, match="body/input/1: must not be empty"):
        theirs.embeddings.create(model="any", input=["a", ""])
    with pytest.raises(UnprocessableEntityError, match="body/input: must have at least one item"):
        theirs.embeddings.create(model="any", input=[])
    with pytest.raises(NotFoundError, match=r"openapi\.json lists all paths"):
        theirs.chat.completions.create(model="any", messages=[])


@pytest.mark.parametrize("ids", [[1, 2, 3], [[1, 2, 3], [4]]], ids=["one text", "two texts"])
def test_token_ids_are_refused_with_the_option_that_sends_texts(theirs: OpenAI, ids: Any) -> None:
    with pytest.raises(UnprocessableEntityError, match="check_embedding_ctx_length=False") as refused:
        theirs.embeddings.create(model="any", input=ids)
    assert refused.value.code == "token_ids"


def test_errors_have_both_forms(site: Site) -> None:
    cases = (
        (site.ask("POST", PATH, {"input": 5}), 422, "unprocessable_entity"),
        (site.ask("POST", PATH, b"{"), 400, "bad_request"),
        (site.ask("GET", PATH), 405, "method_not_allowed"),
        (site.ask("POST", PATH, b"", {"Content-Type": "text/plain"}), 415, "unsupported_media_type"),
        (site.ask("GET", "/v1/models/other"), 404, "model_not_found"),
        (site.ask("POST", PATH, {"input": "a"}, {"Host": "elsewhere.example"}), 421, "misdirected_request"),
    )
    for answer, status, code in cases:
        assert (answer.status, answer.json["status"]) == (status, status)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json["title"]
        error = {"message": answer.json["detail"], "type": "invalid_request_error", "param": None, "code": code}
        assert answer.json["error"] == error
    assert "error" not in site.ask("POST", "/v1/embed", {}).json


def test_keys_and_full_queues_are_told(clip: LoadedBundle) -> None:
    key = "a-key-of-24-characters-a"
    with (
        served(create_app(clip, keys=[key])) as locked,
        OpenAI(base_url=f"{locked.url}/v1", api_key="wrong", max_retries=0) as stranger,
        OpenAI(base_url=f"{locked.url}/v1", api_key=key, max_retries=0) as known,
    ):
        with pytest.raises(AuthenticationError, match="a valid key is needed") as refused:
            stranger.models.list()
        assert (refused.value.type, refused.value.code) == ("authentication_error", "invalid_api_key")
        assert len(known.models.list().data) == 1
    with (
        served(create_app(clip, limits=Limits(all_bodies_mb=1, body_mb=1))) as small,
        OpenAI(base_url=f"{small.url}/v1", api_key="-", max_retries=0) as client,
        pytest.raises(RateLimitError, match="try again later") as busy,
    ):
        client.embeddings.create(model="any", input=["a" * 3900] * 240)
    assert (busy.value.type, busy.value.code) == ("rate_limit_error", "rate_limit_exceeded")


def test_null_stands_for_what_is_not_set(site: Site) -> None:
    plain = site.post(PATH, {"input": "a"})
    nulls = {"model": None, "encoding_format": None, "dimensions": None, "user": None}
    assert site.post(PATH, {"input": "a", **nulls}) == plain
    assert plain["model"] == "diptych"
    embed = site.post("/v1/embed", {"texts": ["a"]})
    assert site.post("/v1/embed", {"texts": ["a"], "images": None, "encoding": None}) == embed
    search = site.post("/v1/search", {"text": "a"})
    assert site.post("/v1/search", {"text": "a", "terms": None, "where": None, "offset": None, "limit": None}) == search
    assert site.post("/v1/search", {"terms": [{"text": "a", "image": None, "id": None, "weight": None}]}) == search
    assert site.ask("POST", "/v1/embed", {"texts": None, "images": None}).status == 422
    assert site.ask("POST", PATH, {"input": None}).status == 422


def test_the_model_has_a_name(theirs: OpenAI, clip: LoadedBundle) -> None:
    (listed,) = theirs.models.list().data
    assert clip.path is not None
    assert (listed.id, listed.object, listed.owned_by) == (clip.path.name, "model", "diptych")
    assert listed.created == int(clip.path.stat().st_mtime)
    for name in (listed.id, clip.identity, "diptych"):
        assert theirs.models.retrieve(name) == listed
    for name in ("gpt-4o", "some/other"):
        with pytest.raises(NotFoundError, match=f"this server has one model, {listed.id}") as missing:
            theirs.models.retrieve(name)
        assert missing.value.code == "model_not_found"


def test_the_default_limit_is_that_of_openai(theirs: OpenAI, clip: LoadedBundle) -> None:
    texts = [f"number {number}" for number in range(2048)]
    found = theirs.embeddings.create(model="any", input=texts)
    rows = np.array([row.embedding for row in found.data], dtype=np.float32)
    np.testing.assert_allclose(rows, clip.encode_texts(texts), atol=1e-6)
    with pytest.raises(UnprocessableEntityError, match="2049 texts in one request; at most 2048: split them"):
        theirs.embeddings.create(model="any", input=[*texts, "one more"])


@pytest.mark.parametrize("body", [{"input": ["a"]}, {"texts": ["a"]}], ids=["openai", "own"])
def test_answers_are_written_beside_the_event_loop(
    site: Site, monkeypatch: pytest.MonkeyPatch, body: dict[str, Any]
) -> None:
    """2,048 embeddings of 512 numbers are 22 MB of JSON, which take more than a second; others are served meanwhile."""
    threads = list[str]()

    def seen(emb: Any, encoding: Any) -> list[Any]:
        threads.append(threading.current_thread().name)
        return encode_embeddings(emb, encoding)

    for module in (api, openai):
        monkeypatch.setattr(module, "encode_embeddings", seen)
    site.post(PATH if "input" in body else "/v1/embed", body)
    assert threads
    assert all(name.startswith("bodies") for name in threads)


def test_a_request_of_more_than_may_wait_is_no_matter_of_time(clip: LoadedBundle) -> None:
    with served(create_app(clip, limits=Limits(waiting=100))) as small:
        assert small.ask("GET", "/v1/info").json["limits"]["texts"] == 100
        assert small.ask("POST", PATH, {"input": ["a"] * 100}).status == 200
        refused = small.ask("POST", PATH, {"input": ["a"] * 101})
    assert refused.status == 422
    assert "at most 100" in refused.json["detail"]


@pytest.mark.slow
def test_langchains_client_works_unchanged(site: Site, clip: LoadedBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken
    from langchain_openai import OpenAIEmbeddings

    texts = [f"number {number}" for number in range(1500)]  # Sent as 1,000 and 500.
    given: dict[str, Any] = {"base_url": f"{site.url}/v1", "api_key": "-", "model": "any", "max_retries": 0}
    client = OpenAIEmbeddings(check_embedding_ctx_length=False, **given)
    np.testing.assert_allclose(client.embed_documents(texts), clip.encode_texts(texts), atol=1e-6)
    np.testing.assert_allclose(client.embed_query("a dog"), clip.encode_texts(["a dog"])[0], atol=1e-6)

    letters = tiktoken.Encoding(  # The vocabulary of OpenAI would be downloaded.
        "letters", pat_str=".", mergeable_ranks={bytes([byte]): byte for byte in range(256)}, special_tokens={}
    )
    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda name: letters)
    with pytest.raises(UnprocessableEntityError, match="check_embedding_ctx_length=False"):
        OpenAIEmbeddings(**given).embed_query("a dog")
