"""The trials that a search stores: it goes on with them, and refuses damaged ones."""

import json
from pathlib import Path

import pytest

import fusion.experiments.search as module
from fusion.training.history import EpochResult
from pipeline.errors import CacheBusy, CacheCorrupt, UsageError
from pipeline.system import locks
from tests.fusion.experiments.planted_scores import RunSearch, Trained


def test_the_same_command_goes_on_where_it_stopped(
    run_search: RunSearch,
    scored: Trained,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fit = module._Work._fit

    def stop(work: object, model: object, config: object, seeds: range) -> list[EpochResult]:
        if len(scored) == 4:
            raise KeyboardInterrupt
        return fit(work, model, config, seeds)  # type: ignore[arg-type]

    monkeypatch.setattr(module._Work, "_fit", stop)
    with pytest.raises(KeyboardInterrupt):
        run_search(trials=6)
    monkeypatch.setattr(module._Work, "_fit", fit)
    report = run_search(trials=6)
    assert report.reused == 4
    assert len(set(scored)) == len(scored)  # no training was made twice
    assert run_search(trials=6).reused == len(scored)


def test_two_searches_do_not_write_one_folder(
    run_search: RunSearch, scored: Trained, tmp_path: Path
) -> None:
    out = tmp_path / "search"
    with locks.hold(out / ".meld-search", "the search"), pytest.raises(CacheBusy, match="search"):
        run_search(trials=1)
    assert run_search(trials=1).out == out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_of_something_else_is_left_as_it_is(
    run_search: RunSearch, scored: Trained, features: Path
) -> None:
    before = contents(features)
    with pytest.raises(UsageError, match="holds no search of meld"):
        run_search(trials=1, out=features)
    assert contents(features) == before
    assert scored == []


# -------------------------------------------------------------------------------------- damage


def test_a_damaged_trial_is_named(run_search: RunSearch, scored: Trained) -> None:
    report = run_search(trials=2)
    path = next((report.out / "trials").iterdir())
    path.write_text("[{}]")
    with pytest.raises(CacheCorrupt, match=path.name):
        run_search(trials=2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"score": 7.5},
        {"score": float("nan")},
        {"score": True},
        {"dev_emotion_f1": "x"},
        {"dev_sentiment_f1": -0.1},
        {"epoch": 2.5},
        {"epoch": 0},
        {"seconds": None},
        {"learning_rate": 10**400},
        {"train_loss": -1.0},
    ],
    ids=lambda wrong: str(wrong)[:30],
)
def test_a_trial_of_values_that_cannot_be_is_damage(
    run_search: RunSearch, scored: Trained, wrong: dict[str, object]
) -> None:
    report = run_search(trials=1)
    [path] = (report.out / "trials").iterdir()
    values = json.loads(path.read_text())
    values["best"][0] |= wrong
    path.write_text(json.dumps(values))
    with pytest.raises(CacheCorrupt, match=path.name):
        run_search(trials=1)


@pytest.mark.parametrize("wrong", [{"failed": ""}, {"failed": 3}, {"failed": None}, {}, [], 3])
def test_a_failure_without_a_reason_is_damage(
    run_search: RunSearch, scored: Trained, wrong: object
) -> None:
    report = run_search(trials=2)
    [path, _] = (report.out / "trials").iterdir()
    path.write_text(json.dumps(wrong))
    with pytest.raises(CacheCorrupt, match=path.name):
        run_search(trials=2)
