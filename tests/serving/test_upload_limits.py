"""What an upload may be, read from its headers once it is there."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.media import SIZE
from tests.serving.answers import problem
from tests.serving.conftest import HOME

if TYPE_CHECKING:
    from serving.jobs import JobStore


@pytest.mark.parametrize("address", ["/v1/jobs", "/v1/predict"])
@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_media_s": 1.5}, "talk.mp4 lasts 2 s; 1.5 s are the most"),
        ({"max_pixels": 20_000}, f"talk.mp4 has {SIZE[0] * SIZE[1]} pixels a frame; 20000 are"),
        ({"max_frames": 49}, "talk.mp4 has 50 frames; 49 are the most"),
        ({"max_streams": 1}, "talk.mp4 has 2 streams; 1 are the most"),
    ],
)
def test_an_upload_above_a_limit_is_refused_and_not_kept(
    start_app: Callable[..., Any],
    store: "JobStore",
    clip: Path,
    address: str,
    limits: dict[str, float],
    said: str,
) -> None:
    from starlette.testclient import TestClient

    with TestClient(start_app(**limits), base_url=HOME) as client:
        files = {"media": ("talk.mp4", clip.read_bytes(), "video/mp4")}
        refused = client.post(address, files=files, data={"text": "Hi"})
    assert problem(refused) == (413, "too_large")
    assert refused.json()["detail"].startswith(said)
    root = store.folder("x").path.parents[1]
    assert [path for part in ("jobs", "incoming") for path in (root / part).iterdir()] == []


def test_an_upload_at_a_limit_is_accepted(start_app: Callable[..., Any], clip: Path) -> None:
    from starlette.testclient import TestClient

    limits = {"max_pixels": SIZE[0] * SIZE[1], "max_frames": 50, "max_streams": 2}
    with TestClient(start_app(**limits), base_url=HOME) as client:
        files = {"media": ("talk.mp4", clip.read_bytes(), "video/mp4")}
        assert client.post("/v1/jobs", files=files, data={"text": "Hi"}).status_code == 202
