"""The contribution of each modality to each prediction: exact Shapley values over the modalities.

The game of a row (Shapley 1953; Lundberg and Lee 2017 for models): v(S) is the calibrated
log-probability that the model gives to the emotion that is explained, when it sees only the
modalities in S. A modality's value is its mean gain over all orders in which they may join, and
the values add up to v(all) - v(nothing).

v(nothing) is not asked of the model, which is never trained without any modality: it is the
logarithm of that emotion's share among train's labels, what one would say of a row unseen. A
modality that a row does not have joins without a gain, so its value is exactly 0.

With M modalities that takes 2^M - 1 batched passes (at most 7), no sampling.
"""

from dataclasses import dataclass
from math import factorial

import numpy as np
from numpy.typing import NDArray

from fusion.inference.description import RunDescription
from fusion.inference.predictions import Predictions
from fusion.inference.subsets import SubsetPredictions
from fusion.inference.temperature import Temperature
from fusion.labels import Labels
from pipeline.schema import EMOTIONS, Modality

NOTHING = -1  # no modality decided: the row has none


@dataclass(frozen=True, kw_only=True)
class ClassShares:
    """Over the rows predicted as `emotion`: mean |value| of each modality, nats; 0 without rows."""

    emotion: str
    rows: int
    strength: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ModalityShares:
    """values:    float64 [rows, modalities], nats; above 0 speaks for the prediction

    predicted:    int64 [rows], the emotion that is explained
    present:      bool [rows, modalities], columns as in `modalities`
    of_all, of_nothing: float64 [rows], v(all) and v(nothing)
    """

    modalities: tuple[Modality, ...]
    values: NDArray[np.float64]
    predicted: Labels
    present: NDArray[np.bool_]
    of_all: NDArray[np.float64]
    of_nothing: NDArray[np.float64]

    @property
    def decisive(self) -> Labels:
        """int64 [rows]: column of the present modality with the highest value, or NOTHING."""
        seen = np.where(self.present, self.values, -np.inf)
        return np.where(self.present.any(axis=1), seen.argmax(axis=1), NOTHING)

    @property
    def decided_rows(self) -> tuple[int, ...]:
        """How many rows each modality decided."""
        return tuple(int((self.decisive == k).sum()) for k in range(len(self.modalities)))

    @property
    def by_class(self) -> tuple[ClassShares, ...]:
        """In the order of EMOTIONS."""
        shares = []
        for number, emotion in enumerate(EMOTIONS):
            strength = np.abs(self.values[self.predicted == number])  # [rows of it, modalities]
            mean = strength.mean(axis=0) if len(strength) else np.zeros(len(self.modalities))
            shares.append(
                ClassShares(emotion=emotion, rows=len(strength), strength=tuple(map(float, mean)))
            )
        return tuple(shares)


def explain_modalities(
    run: RunDescription, by_subset: SubsetPredictions, emotion: Labels | None = None
) -> ModalityShares:
    """Shapley values of one emotion in every row.

    by_subset: from `predict_subsets`
    emotion:   int64 [rows]; None takes the emotion head's own first choice
    """
    modalities = max(by_subset, key=len)
    everything = by_subset[modalities]
    present = everything.present
    predicted = everything.predicted_emotion if emotion is None else emotion
    of_nothing = np.log(_train_shares(run))[predicted]
    game = np.empty((len(everything), 2 ** len(modalities)))  # [rows, subsets as bits]
    game[:, 0] = of_nothing
    for subset, predictions in by_subset.items():
        bits = sum(1 << modalities.index(modality) for modality in subset)
        game[:, bits] = _log_probability(run, predictions, predicted)
    # Only what is present can join: a subset is worth what its present part is, bit for bit.
    here = (present << np.arange(len(modalities))).sum(axis=1)  # [rows], as bits
    game = np.take_along_axis(game, np.arange(game.shape[1]) & here[:, None], axis=1)
    return ModalityShares(
        modalities=modalities,
        values=shapley_values(game),
        predicted=predicted,
        present=present,
        of_all=game[:, -1],
        of_nothing=of_nothing,
    )


def shapley_values(game: NDArray[np.float64]) -> NDArray[np.float64]:
    """game [rows, 2^players]: what each set of players is worth, player k being bit k
    -> [rows, players]."""
    players = game.shape[1].bit_length() - 1
    values = np.zeros((len(game), players))
    for player in range(players):
        for joined in range(game.shape[1]):
            if not joined >> player & 1:
                size = joined.bit_count()
                orders = factorial(size) * factorial(players - size - 1) / factorial(players)
                gain = game[:, joined | 1 << player] - game[:, joined]
                values[:, player] += orders * gain
    return values


def _train_shares(run: RunDescription) -> NDArray[np.float64]:
    """float64 [7]. An emotion that train does not have counts as one row: its logarithm must be
    a number."""
    counts = np.maximum(run.emotion_counts, 1)
    return counts / counts.sum()


def _log_probability(
    run: RunDescription, predictions: Predictions, emotion: Labels
) -> NDArray[np.float64]:
    """float64 [rows]: of the given emotion in each row."""
    decoding = run.decoding
    temperature = Temperature() if decoding is None else decoding.emotion
    of_all = temperature.log_probabilities(predictions.emotion_logits)  # [rows, 7]
    return of_all[np.arange(len(predictions)), emotion]
