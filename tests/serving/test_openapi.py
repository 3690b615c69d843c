"""What `/v1/openapi.json` says: of every address what it is for, an example, and its problems."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.serving.conftest import HOME

pytest.importorskip("fastapi", reason="the extra serve is not installed")


@pytest.fixture
def client(start_app: Callable[..., Any]) -> Any:
    from starlette.testclient import TestClient

    return TestClient(start_app(), base_url=HOME)


@pytest.fixture
def described(client: Any) -> dict[str, Any]:
    document: dict[str, Any] = client.get("/v1/openapi.json").json()
    return document


def operations(described: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in described["paths"].items():
        for method, operation in item.items():
            yield f"{method} {path}", operation


def check(described: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    """Raises where the value is not what the schema says."""
    whole = {**schema, "components": described["components"]}
    jsonschema.Draft202012Validator(whole).validate(value)


def test_every_address_is_there(described: dict[str, Any]) -> None:
    assert described["openapi"].startswith("3.1")
    assert set(described["paths"]) == {
        "/v1/jobs",
        "/v1/jobs/{job_id}",
        *(f"/v1/jobs/{{job_id}}/{part}" for part in ("timeline", "events", "media")),
        *("/v1/predict", "/v1/text", "/v1/model", "/v1/session"),
        "/v1/live/tickets",
        *("/livez", "/readyz", "/metrics"),
    }


def test_every_reference_leads_to_something(described: dict[str, Any]) -> None:
    found = []

    def look(value: Any) -> None:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                found.append(value["$ref"])
            for each in value.values():
                look(each)
        elif isinstance(value, list):
            for each in value:
                look(each)

    look(described)
    assert "#/components/schemas/Timeline.utterance" in found
    for reference in found:
        target = described
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]


def test_every_operation_says_what_it_is_for(described: dict[str, Any]) -> None:
    known = {tag["name"] for tag in described["tags"]}
    for name, operation in operations(described):
        assert operation["summary"], name
        assert operation["description"], name
        assert set(operation["tags"]) <= known, name
        for parameter in operation.get("parameters", ()):
            assert parameter["description"], (name, parameter["name"])
        assert any(status.startswith("2") for status in operation["responses"]), name
        for status, answer in operation["responses"].items():
            assert answer["description"], (name, status)
            assert "X-Request-Id" in answer["headers"], (name, status)


def test_every_problem_is_one_and_has_an_example(described: dict[str, Any]) -> None:
    reference = {"$ref": "#/components/schemas/Problem"}
    num = 0
    for name, operation in operations(described):
        assert operation["responses"]["default"]["content"] == {
            "application/problem+json": {"schema": reference}
        }
        for status, answer in operation["responses"].items():
            if not status.startswith(("4", "5")) or (name, status) in NO_PROBLEMS:
                continue
            [(kind, content)] = answer["content"].items()
            assert (kind, content["schema"]) == ("application/problem+json", reference)
            assert content["example"]["status"] == int(status)
            check(described, reference, content["example"])
            assert ("Retry-After" in answer["headers"]) == (status in ("409", "503"))
            num += 1
    assert num > 50


NO_PROBLEMS = {("get /readyz", "503")}  # whether it is ready


def test_files_are_described_with_their_ranges(described: dict[str, Any]) -> None:
    for part in ("media", "timeline"):
        answers = described["paths"][f"/v1/jobs/{{job_id}}/{part}"]["get"]["responses"]
        assert "400" in answers, part
        for status in ("206", "416"):
            assert "Content-Range" in answers[status]["headers"], (part, status)


def test_examples_are_what_their_schemas_say(described: dict[str, Any]) -> None:
    num = 0
    for _, operation in operations(described):
        for answer in operation["responses"].values():
            for content in answer.get("content", {}).values():
                if "example" in content and "schema" in content:
                    check(described, content["schema"], content["example"])
                    num += 1
    assert num > 50


def test_addresses_that_need_the_key_say_so(described: dict[str, Any]) -> None:
    without = {name for name, each in operations(described) if "security" not in each}
    assert without == {"post /v1/session", "get /livez", "get /readyz"}


def test_what_is_answered_is_what_is_described(
    described: dict[str, Any], client: Any, clip: Path
) -> None:
    files = {"media": ("talk.mp4", clip.read_bytes(), "video/mp4")}
    for address in ("/v1/jobs", "/v1/predict"):
        described_here = described["paths"][address]["post"]["responses"]
        answer = client.post(address, files=files, data={"text": "Hi"})
        assert str(answer.status_code) in described_here
    job = client.post("/v1/jobs", files=files, data={"text": "Hi"}).json()
    check(described, {"$ref": "#/components/schemas/JobView"}, job)
    for path in ("/livez", "/readyz"):
        check(described, {"$ref": "#/components/schemas/StatusView"}, client.get(path).json())


def test_the_timeline_is_described_by_its_own_schema(described: dict[str, Any]) -> None:
    own = json.loads(
        (Path(__file__).parents[2] / "fusion/inference/timeline.schema.json").read_text()
    )
    here = described["components"]["schemas"]["Timeline"]
    assert here["properties"].keys() == own["properties"].keys()
    answers = described["paths"]["/v1/predict"]["post"]["responses"]["200"]["content"]
    assert answers == {"application/json": {"schema": {"$ref": "#/components/schemas/Timeline"}}}
