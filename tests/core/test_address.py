"""Secrets of addresses, in texts of every kind."""

import pickle

import pytest

from diptych.core.address import is_redacted, redacted, shown_address, without_secrets
from diptych.core.errors import DataError, DiptychWarning

SECRET = "Xy7secretXy7"


@pytest.mark.parametrize(
    "text",
    [
        f"shards:https://ann:{SECRET}@host/{{0..3}}.tar",
        f"https://ann:p@{SECRET}@host/a.tar",
        f"https://ann:p/{SECRET}@host/a.tar",
        f"https://{SECRET}@host/a.tar",
        f"s3://AKIA:{SECRET}@bucket/a.tar",
        f"a https://b/c.tar?part=1&X-Amz-Signature={SECRET}&n=2 and {{'https://b/c?sig={SECRET}'}}",
        f"URL('https://b/c?X%2DAmz%2DSecurity%2DToken={SECRET}')",
        f"https://b/c.tar?sv=2024&sig={SECRET}%2F==::https://d/e.tar?token={SECRET}",
        f"hf:owner/name?token={SECRET}",
        f"https://b/c#access_token={SECRET}",
        f"https://b/c?password={SECRET}",
        f"https://b/c?Key={SECRET}&AWSAccessKeyId={SECRET}&api-key={SECRET}&client_secret={SECRET}",
        "the hub refused hf_Xy7secretXy7abcdefgh",
        f"mix: 0.7*shards:https://h/a?token={SECRET} + 0.3*csv:f.csv?caption=title",
    ],
)
def test_no_secret_is_left_and_the_result_stays_the_same(text: str) -> None:
    hidden = redacted(text)
    assert "secret" not in hidden.replace("client_secret", "")
    assert redacted(hidden) == hidden
    assert "hub" in text or is_redacted(hidden)


@pytest.mark.parametrize(
    "text",
    [
        "https://host:8080/a/@b.tar?part=1",
        "csv:captions.csv?caption=title&separator=tab",
        "shards:s3://bucket/{000..127}.tar?cache_gb=3",
        "abfs://container@account.dfs.core.windows.net/a.tar",
        "https://[::1]:8080/a@b",
        "https://host/a?author=me&tokenizer=bpe",
        "What is this? a = b, c://",
        "",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text
    assert not is_redacted(text)


def test_rest_of_the_text_stays() -> None:
    text = f"cannot read 'https://ann:{SECRET}@host/a.tar?n=1&token={SECRET}&m=2' (403)"
    assert redacted(text) == "cannot read 'https://...@host/a.tar?n=1&token=...&m=2' (403)"
    assert shown_address(f"postgresql://ann:{SECRET}@host/db?sslpassword={SECRET}") == (
        "postgresql://ann@host/db?sslpassword=..."
    )


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (f" postgresql+psycopg://ann:{SECRET}@host/db", "postgresql+psycopg://ann@host/db"),
        (f"POSTGRESQL://ann:{SECRET}@host/db", "POSTGRESQL://ann@host/db"),
        (f"postgresql://ann:a@{SECRET}@host/db", "postgresql://ann@..."),
        (f"postgresql://ann:a@host/db?password=b@{SECRET}", "postgresql://ann@..."),
        (f"postgresql://host/db?password=a'{SECRET}&user=ann", "postgresql://host/db?password=...&user=ann"),
        (f"postgresql://host/db?password=a::{SECRET}", "postgresql://host/db?password=..."),
        (f"postgresql://host/db?password=a {SECRET}", "postgresql://host/db?password=..."),
        (f"postgresql://host/db?user=ann&password=a&{SECRET}", "postgresql://host/db?user=ann&password=...&..."),
        (f"postgresql://host/db?pass%77ord={SECRET}", "postgresql://host/db?pass%77ord=..."),
        ("postgresql://host/db?index=a&sslmode=require", "postgresql://host/db?index=a&sslmode=require"),
        ("sqlite:////runs/study.db", "sqlite:////runs/study.db"),
    ],
)
def test_addresses_of_databases_are_shown_without_passwords(address: str, shown: str) -> None:
    assert shown_address(address) == shown


def test_errors_and_warnings_hide_secrets_and_survive_pickling() -> None:
    error = DataError(f"https://host/a.tar?token={SECRET}: no such file")
    assert str(error) == "https://host/a.tar?token=...: no such file"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert SECRET not in str(DiptychWarning(f"https://a:{SECRET}@host"))


def test_plain_data_is_redacted_at_any_depth() -> None:
    plain = {"a": [{"b": f"https://h?sig={SECRET}"}], "c": 1.5, "d": None}
    assert without_secrets(plain) == {"a": [{"b": "https://h?sig=..."}], "c": 1.5, "d": None}
