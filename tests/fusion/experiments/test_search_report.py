"""What a search says mattered: the share of each setting, beside what chance would reach."""

import re
from pathlib import Path

import numpy as np
import pytest

from fusion.experiments.search_report import Trial, reached_by_chance, what_mattered
from tests.conftest import Meld
from tests.fusion.experiments.planted_scores import FIXED, RunSearch, Trained, result


def test_what_was_planted_to_matter_is_found_and_what_was_not_is_not(
    run_search: RunSearch, scored: Trained
) -> None:
    report = run_search(trials=60)
    share = {each.setting: each.share or 0 for each in report.mattered}
    assert report.mattered[0].setting == "fit.learning_rate"
    assert share["fit.learning_rate"] > 0.3
    assert abs(share["model.hidden"]) < 0.15
    assert 5e-4 < float(report.best.settings["fit.learning_rate"]) < 2e-3  # type: ignore[arg-type]


def test_the_share_is_of_what_chance_does_not_explain() -> None:
    def trial(number: int, value: str, score: float) -> Trial:
        return Trial(number=number, settings={"a": value}, best=(result(score),), rung=0)

    exact = [trial(k, "xy"[k % 2], 0.5 + 0.1 * (k % 2)) for k in range(24)]
    [found] = what_mattered(exact, ["a"])
    assert found.share == pytest.approx(1)
    assert found.names == ("x", "y")
    nothing = [trial(k, "xy"[k // 2 % 2], 0.5 + 0.1 * (k % 2)) for k in range(24)]
    [found] = what_mattered(nothing, ["a"])
    # Groups of equal means: 1 - (within / 22) / (total / 23), and within is the total.
    assert found.share == pytest.approx(1 - 23 / 22)
    [found] = what_mattered(exact[:19], ["a"])
    assert found.share is None
    assert len(found.points) == 19


def test_of_few_draws_nothing_is_said_of_what_mattered(
    meld: Meld, search_command: tuple[object, ...], tmp_path: Path
) -> None:
    finished = meld(*search_command, "--trials", 4)
    assert "4 draws are too few to tell what mattered" in finished.out
    assert " %" not in finished.out
    page = (tmp_path / "search" / "search.html").read_text()
    assert "4 draws are too few to tell what mattered" in page
    assert " %" not in page.split("</style>")[1]
    found = meld(*search_command, "--trials", 4, "--json").json["mattered"]
    assert {each["share"] for each in found} == {None}


def test_of_many_draws_it_is_said_with_what_chance_alone_would_reach(
    meld: Meld, search_command: tuple[object, ...]
) -> None:
    finished = meld(*search_command, "--trials", 30, "--fixed", ",".join(FIXED))
    assert re.search(r"of 30 draws; below \d+ % it may be chance", finished.out)
    assert re.search(r"fit\.learning_rate: \+\d+ %", finished.out)


def test_of_one_trial_nothing_is_compared(
    meld: Meld, search_command: tuple[object, ...], tmp_path: Path
) -> None:
    finished = meld(*search_command, "--trials", 1)
    assert "nothing was compared" in finished.out
    assert "gains" not in finished.out
    assert "optimistic" not in finished.out
    page = (tmp_path / "search" / "search.html").read_text()
    assert "nothing was compared" in page
    assert "optimistic" not in page


def test_what_chance_alone_reaches_is_what_shuffled_scores_reach() -> None:
    """Of settings in three equal groups."""
    random = np.random.default_rng(0)
    settings, draws = 8, 24
    largest = []
    for _ in range(400):
        values = [random.permutation(draws) % 3 for _ in range(settings)]
        trials = [
            Trial(
                number=number,
                settings={str(name): f"{each[number]}" for name, each in enumerate(values)},
                best=(result(float(random.uniform(0.4, 0.6))),),
                rung=0,
            )
            for number in range(draws)
        ]
        found = what_mattered(trials, list(map(str, range(settings))))
        largest.append(max(each.share or 0 for each in found))
    assert np.quantile(largest, 0.95) == pytest.approx(reached_by_chance(draws, settings), abs=0.05)
