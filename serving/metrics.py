"""What a monitoring system asks of a service, in Prometheus' text format.

Names, units and labels follow https://prometheus.io/docs/practices/naming. No label has a value
that clients choose, and none an id.
"""

from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
# Seconds: from a short clip to an hour of film.
_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
_STATES = ("queued", "running", "succeeded", "failed")
_OUTCOMES = ("succeeded", "failed", "cancelled")


class Metrics:
    """Of one service: each has a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._jobs = Gauge("meld_jobs", "Jobs that are kept.", ["state"], registry=self._registry)
        self._workers = Gauge(
            "meld_workers_ready", "Workers that have the model loaded.", registry=self._registry
        )
        self.jobs_finished = self._counter(
            "meld_jobs_finished", "Jobs that came to an end.", "outcome"
        )
        for outcome in _OUTCOMES:  # 0 is a value, and no series is none
            self.jobs_finished.labels(outcome)
        self.queue_wait = Histogram(
            "meld_queue_wait_seconds",
            "From a job's acceptance to its begin.",
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self.stage = Histogram(
            "meld_stage_seconds",
            "Wall time of a stage of a job: receiving and measuring what is uploaded, hearing it "
            "where nothing says what is spoken, predicting; and of the parts of these in its "
            "worker: decoding (waiting for it), encoding, fusing.",
            ["stage"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self.media_seconds = self._counter(
            "meld_media_seconds", "Length of the media of jobs that succeeded."
        )
        self.upload_bytes = self._counter(
            "meld_upload_bytes", "Received of uploads, those that were refused included."
        )
        self.requests_refused = self._counter(
            "meld_requests_refused", "Requests answered with a problem, by its code.", "reason"
        )
        self.modalities_lost = self._counter(
            "meld_modalities_lost",
            "Utterances that lack a modality which the model takes.",
            "modality",
            "reason",
        )
        self.workers_lost = self._counter(
            "meld_workers_lost",
            "Workers that ended or hung while they worked on a job, and were replaced.",
        )

        self.live_sessions = Gauge(
            "meld_live_sessions", "Live sessions that are open.", registry=self._registry
        )
        self.live_ended = self._counter(
            "meld_live_ended", "Live sessions that came to an end, by why.", "reason"
        )
        self.live_lag = Histogram(
            "meld_live_lag_seconds",
            "From the end of somebody's utterance to its answer, in the sound that came meanwhile.",
            buckets=_BUCKETS,
            registry=self._registry,
        )

    def _counter(self, name: str, told: str, *labels: str) -> Counter:
        return Counter(name, told, labels, registry=self._registry)

    def watch(self, *, jobs: Callable[[], Mapping[str, int]], workers: Callable[[], int]) -> None:
        """jobs: by state; workers: that are ready. Both are asked at each reading."""
        for state in _STATES:
            self._jobs.labels(state).set_function(partial(_of, jobs, state))
        self._workers.set_function(workers)

    def tell_build(self, model: Mapping[str, Any]) -> None:
        """model: as `GET /v1/model` tells it"""
        build = Info("meld_build", "What serves, and what predicts.", registry=self._registry)
        build.info(
            {"version": version("meld"), "model": model["name"], "bundle": model["fingerprint"]}
        )

    def render(self) -> bytes:
        return generate_latest(self._registry)


def _of(count: Callable[[], Mapping[str, int]], state: str) -> float:
    return count().get(state, 0)
