"""Whatever the description allows, and what it does not, gives no failure of the server."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error

from tests.server.site import Site

OPERATIONS = (
    *(("POST", f"/v1/{name}") for name in ("embed", "similarity", "classify", "search", "embeddings")),
    *(("GET", f"/v1/images/{{id}}{rest}") for rest in ("", "/file", "/thumb", "/heat")),
    *(("GET", path) for path in ("/v1/info", "/v1/models", "/v1/models/{id}", "/healthz", "/readyz", "/metrics")),
)


@pytest.fixture(scope="module")
def described(site: Site) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{site.url}/openapi.json")


def test_all_routes_are_described(described: schemathesis.BaseSchema) -> None:
    paths = described.raw_schema["paths"]
    assert {(method.upper(), path) for path, methods in paths.items() for method in methods} == set(OPERATIONS)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_request_makes_the_server_fail(described: schemathesis.BaseSchema, method: str, path: str) -> None:
    operation = described[path][method]
    modes = (schemathesis.GenerationMode("positive"), schemathesis.GenerationMode("negative"))
    allowed, others = (operation.as_strategy(generation_mode=mode) for mode in modes)
    tried = []

    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    @given(allowed | others)
    def sent(case: Any) -> None:
        case.call_and_validate(checks=[not_a_server_error])
        tried.append(case)

    sent()
    assert tried
