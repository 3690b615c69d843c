"""Golden clips in which an encoder finds nothing: a face is not in every picture."""

from dataclasses import replace

import numpy as np
import pytest

from fusion.export.golden import GoldenValues, _compare_features, _stack

ROW = np.arange(6, dtype=np.float32).reshape(2, 3)
GOLDEN = GoldenValues(
    spans=((0, 1), (1, 2)),
    texts=("", ""),
    speakers=("", ""),
    decoded={},
    features={"video": _stack([None, ROW])},
    probabilities={},
    machine={},
)


def test_an_utterance_without_features_is_compared_as_one_without() -> None:
    assert np.isnan(GOLDEN.features["video"][0]).all()
    [same] = _compare_features(GOLDEN, GOLDEN)
    assert (same.largest, same.tolerated) == (0, True)
    [other] = _compare_features(
        GOLDEN, replace(GOLDEN, features={"video": _stack([None, 2 * ROW])})
    )
    assert other.largest == pytest.approx(1)


@pytest.mark.parametrize("rows", [[ROW, ROW], [ROW, None]])
def test_features_of_other_utterances_are_told(rows: list[np.ndarray | None]) -> None:
    [told] = _compare_features(GOLDEN, replace(GOLDEN, features={"video": _stack(rows)}))
    assert told.largest is None
    assert told.remark == "finds something in other utterances here"


def test_no_features_at_all_are_no_match() -> None:
    [told] = _compare_features(GOLDEN, replace(GOLDEN, features={}))
    assert not told.tolerated
