"""Cross-validation: dialogues stay whole, nothing is chosen where it is measured, noise shows."""

import dataclasses
import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from console.show.crossval import render_crossval
from fusion.evaluation.scores import weighted_f1
from fusion.experiments import crossval as crossval_module
from fusion.experiments.crossval import CrossvalConfig, CrossvalReport, crossval, load_pooled
from fusion.experiments.folds import make_folds
from fusion.model.dims import ModelConfig
from fusion.training.fit import FitConfig, Training, fit_together
from pipeline.cache.format import FeatureCache, write_cache
from pipeline.errors import (
    InputError,
    MismatchError,
    RecipeMismatch,
    StorageError,
    UsageError,
)
from pipeline.schema import EMOTIONS

pytestmark = pytest.mark.heavy

QUICK = FitConfig(epochs=6, learning_rate=1e-2, batch_size=60)
SMALL = ModelConfig(projection=16, hidden=32, dropout=0.1)


@pytest.fixture(scope="module")
def planted(
    tmp_path_factory: pytest.TempPathFactory, plant_cache: Callable[..., FeatureCache]
) -> Path:
    """Not to be written to."""
    folder = tmp_path_factory.mktemp("planted")
    for split, rows in (("train", 300), ("dev", 60)):
        write_cache(folder / f"{split}.h5", plant_cache(split, rows, strength=5.0))
    return folder


@pytest.fixture
def config(planted: Path, features: Path) -> CrossvalConfig:
    shutil.copytree(planted, features)
    return CrossvalConfig(features=features, folds=3, seeds=2, model=SMALL, fit=QUICK)


@pytest.fixture
def brief(config: CrossvalConfig) -> CrossvalConfig:
    """For what is read, dealt and written: one seed, two steps of training."""
    fit = dataclasses.replace(QUICK, epochs=2, batch_size=300)
    return dataclasses.replace(config, seeds=1, fit=fit)


@pytest.fixture(scope="module")
def trained(planted: Path) -> CrossvalReport:
    return crossval(CrossvalConfig(features=planted, folds=3, seeds=2, model=SMALL, fit=QUICK))


def shown(report: CrossvalReport) -> str:
    console = Console(width=100, file=io.StringIO())
    console.print(render_crossval(report))
    return console.file.getvalue()  # type: ignore[attr-defined]


def emotion_f1(report: CrossvalReport) -> float:
    return report.emotion[0].mean


def test_folds_hold_whole_dialogues_and_every_row_is_measured_once(config: CrossvalConfig) -> None:
    data = load_pooled(config)
    folds = make_folds(data, 5, seed=0)
    measured = np.concatenate([fold.measure for fold in folds])
    assert sorted(measured) == list(range(360))
    dialogue = data.turns.dialogue.numpy()
    for fold in folds:
        parts = [set(dialogue[part]) for part in (fold.train, fold.choose, fold.measure)]
        assert all(parts)
        assert sum(map(len, parts)) == len(set.union(*parts)) == 72


def test_dialogues_of_train_and_dev_with_one_number_are_two(config: CrossvalConfig) -> None:
    data = load_pooled(config)
    assert {key.split for key in data.keys} == {"train", "dev"}
    assert int(data.turns.dialogue.max()) + 1 == 60 + 12


def test_a_planted_signal_is_found_with_spread_and_interval(trained: CrossvalReport) -> None:
    f1 = trained.emotion[0]
    assert f1.name == "weighted F1"
    assert f1.mean > 0.8 > 0.4 > f1.majority
    assert np.shape(f1.by_training) == (3, 2)
    assert len(f1.by_seed) == 2
    assert f1.interval is not None
    assert f1.interval.low < f1.mean < f1.interval.high
    assert f1.interval.value == pytest.approx(f1.mean)
    assert sum(trained.rows_by_fold) == trained.rows == 360


def test_features_that_say_nothing_stay_near_the_majority(
    config: CrossvalConfig, write_split: Callable[..., FeatureCache]
) -> None:
    write_split("train", 300, carriers=())
    write_split("dev", 60, carriers=())
    fit = dataclasses.replace(QUICK, epochs=4)
    report = crossval(dataclasses.replace(config, seeds=1, fit=fit))
    assert emotion_f1(report) < 0.3  # 7 classes by chance: 0.14


@pytest.mark.slow
def test_planted_label_noise_shows_beyond_the_intervals(
    config: CrossvalConfig, plant_cache: Callable[..., FeatureCache]
) -> None:
    clean = crossval(config).emotion[0].interval
    random = np.random.default_rng(0)
    for split, rows in (("train", 300), ("dev", 60)):
        cache = plant_cache(split, rows, strength=5.0)
        noisy = [
            EMOTIONS[random.integers(7)] if random.random() < 0.4 else name
            for name in cache.emotion
        ]
        write_cache(config.features / f"{split}.h5", dataclasses.replace(cache, emotion=noisy))
    noised = crossval(config).emotion[0].interval
    assert clean is not None
    assert noised is not None
    assert noised.high < clean.low
    assert noised.high - noised.low > clean.high - clean.low


def test_the_same_command_gives_the_same_numbers(brief: CrossvalConfig) -> None:
    config = dataclasses.replace(brief, seeds=2, folds=2)
    first, second = crossval(config), crossval(config)
    assert first.emotion == second.emotion
    assert first.sentiment == second.sentiment


def test_all_folds_have_one_copy_of_the_features(
    brief: CrossvalConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: dict[str, set[int]] = {}

    def watched(trainings: Sequence[Training], *rest: Any, **others: Any) -> Any:
        for rows in (rows for each in trainings for rows in (each.train, each.dev)):
            for name, values in rows.features.items():
                places.setdefault(name, set()).add(values.data_ptr())
        return fit_together(trainings, *rest, **others)

    monkeypatch.setattr(crossval_module, "fit_together", watched)
    crossval(brief)
    assert [len(each) for each in places.values()] == [1, 1]


def test_test_is_never_read(brief: CrossvalConfig, features: Path) -> None:
    (features / "test.h5").write_bytes(b"no cache at all")
    crossval(brief)
    with pytest.raises(UsageError, match="splits"):
        CrossvalConfig.from_mapping({"splits": ("train", "test")})


def test_the_result_is_written_as_json_and_reported_as_a_table(
    brief: CrossvalConfig, tmp_path: Path
) -> None:
    out = tmp_path / "crossval.json"
    report = crossval(dataclasses.replace(brief, out=out))
    told = json.loads(out.read_text())
    assert told["emotion"][0]["by_seed"] == list(report.emotion[0].by_seed)
    assert told["settings"]["folds"] == 3
    assert f"{report.emotion[0].mean:.3f}" in shown(report)


def test_caches_of_two_recipes_are_not_pooled(
    config: CrossvalConfig,
    write_split: Callable[..., FeatureCache],
    planted_recipe: Callable,
) -> None:
    write_split("dev", 60, recipe=planted_recipe(["text", "audio"], num_frames=8))
    with pytest.raises(RecipeMismatch, match="num_frames"):
        crossval(config)


def test_more_folds_than_dialogues_is_reported_in_one_line(
    config: CrossvalConfig, write_split: Callable[..., FeatureCache]
) -> None:
    write_split("train", 10)
    write_split("dev", 5)
    with pytest.raises(UsageError, match=r"--folds 5: there are 3 dialogues.*at most --folds 3"):
        crossval(dataclasses.replace(config, folds=5))


def speaking(cache: FeatureCache, names: Sequence[str]) -> FeatureCache:
    """The same rows, said by each of these in turn."""
    return dataclasses.replace(
        cache, speaker=[names[row % len(names)] for row in range(len(cache))]
    )


@pytest.fixture
def of_speakers(
    config: CrossvalConfig, plant_cache: Callable[..., FeatureCache]
) -> Callable[..., CrossvalConfig]:
    """of_speakers(["Ann", "Bob"], rows=60): train alone, in dialogues of five rows."""

    def make(names: Sequence[str], rows: int = 60, **changes: object) -> CrossvalConfig:
        cache = speaking(plant_cache("train", rows, strength=5.0), names)
        write_cache(config.features / "train.h5", cache)
        (config.features / "dev.h5").unlink(missing_ok=True)
        return dataclasses.replace(config, group="speaker", seeds=1, **changes)  # type: ignore[arg-type]

    return make


def test_without_a_dev_cache_train_alone_is_dealt(brief: CrossvalConfig) -> None:
    (brief.features / "dev.h5").unlink()
    report = crossval(brief)
    assert (report.rows, report.splits, report.groups) == (300, ("train",), 60)
    assert "300 rows of train, 60 dialogues" in shown(report)
    with pytest.raises(InputError, match=r"dev\.h5: no such cache"):  # it was asked for by name
        crossval(dataclasses.replace(brief, splits=("train", "dev")))


def test_ten_dialogues_are_enough_for_ten_folds(
    config: CrossvalConfig, write_split: Callable[..., FeatureCache]
) -> None:
    write_split("train", 50)
    (config.features / "dev.h5").unlink()
    folds = make_folds(load_pooled(config), 10, seed=0)
    assert [len(fold.measure) for fold in folds] == [5] * 10
    assert all(len(fold.train) and len(fold.choose) for fold in folds)


@pytest.mark.parametrize("names", [["Ann", "Bob"], list("ABCDEFGHIJ")])
def test_each_speaker_is_left_out_once(
    of_speakers: Callable[..., CrossvalConfig], names: list[str]
) -> None:
    config = of_speakers(names, folds=len(names))
    data = load_pooled(config)
    folds = make_folds(data, config.folds, seed=0, group="speaker")
    who = np.array(data.speaker)
    for fold in folds:
        assert len(set(who[fold.measure])) == 1
        assert not {*who[fold.measure]} & {*who[fold.train], *who[fold.choose]}
        assert not {*fold.train} & {*fold.choose}
        assert len(fold.train)
        assert len(fold.choose)
    assert sorted(np.concatenate([fold.measure for fold in folds])) == list(range(60))


def test_speakers_left_out_are_named_and_what_they_share_is_said(
    of_speakers: Callable[..., CrossvalConfig],
) -> None:
    report = crossval(of_speakers(["Ann", "Bob", "Cid"], folds=3))
    assert report.speakers_by_fold == (("Ann",), ("Bob",), ("Cid",))
    assert (report.group, report.groups) == ("speaker", 3)
    assert report.emotion[0].mean > 2 * report.emotion[0].majority
    assert "3 speakers" in shown(report)
    assert "learned from nothing its speaker says" in " ".join(shown(report).split())


def test_fewer_folds_than_speakers_deal_whole_ones_and_leave_no_fold_empty(
    of_speakers: Callable[..., CrossvalConfig],
) -> None:
    names = ["Ann"] * 40 + ["Bob", "Cid", "Dora", "Eve"]
    data = load_pooled(of_speakers(names, rows=88))
    folds = make_folds(data, 4, seed=0, group="speaker")
    who = np.array(data.speaker)
    measured = [set(who[fold.measure]) for fold in folds]
    assert all(measured)
    assert sum(map(len, measured)) == len(set.union(*measured)) == 5


def test_one_dialogue_of_several_speakers_is_dealt_by_speaker(
    of_speakers: Callable[..., CrossvalConfig],
) -> None:
    config = of_speakers(["Ann", "Bob", "Cid"])
    data = load_pooled(config)
    one = dataclasses.replace(
        data,
        keys=tuple(key._replace(dialogue_id=0, utterance_id=k) for k, key in enumerate(data.keys)),
    )
    who = np.array(data.speaker)
    for fold in make_folds(one, 3, seed=0, group="speaker"):
        assert len({*who[fold.train], *who[fold.choose], *who[fold.measure]}) == 3


def test_what_cannot_be_dealt_by_speaker_is_reported_in_one_line(
    of_speakers: Callable[..., CrossvalConfig],
) -> None:
    with pytest.raises(UsageError, match=r"there are 2 speakers.*at most --folds 2"):
        crossval(of_speakers(["Ann", "Bob"], folds=3))
    with pytest.raises(UsageError, match=r"there is 1 speaker, .*nothing can be left out"):
        crossval(of_speakers(["Ann"], folds=2))
    with pytest.raises(InputError, match="30 of 60 rows name no speaker"):
        crossval(of_speakers(["Ann", ""]))
    with pytest.raises(UsageError, match=r"--group speaker .* --context dialogue"):
        of_speakers(["Ann", "Bob"], model=dataclasses.replace(SMALL, context="dialogue"))


def test_a_fold_without_a_label_has_no_score_and_drags_no_other_down(
    brief: CrossvalConfig, plant_cache: Callable[..., FeatureCache]
) -> None:
    """The sentiments of one dialogue alone: two of three folds have none."""
    config = brief
    (config.features / "dev.h5").unlink()
    cache = plant_cache("train", 300, strength=5.0)
    sentiment = [label if row < 5 else "" for row, label in enumerate(cache.sentiment)]
    write_cache(config.features / "train.h5", dataclasses.replace(cache, sentiment=sentiment))
    report = crossval(config)
    assert len(report.emotion) == 3
    assert (
        report.sentiment == ()
    )  # the one training that could measure it had nothing to learn from
    sentiment = [label if row < 10 else "" for row, label in enumerate(cache.sentiment)]
    write_cache(config.features / "train.h5", dataclasses.replace(cache, sentiment=sentiment))
    data = load_pooled(config)
    parts = make_folds(data, 3, seed=0)
    [f1, *_] = crossval(config).sentiment or [None]
    if f1 is not None:
        without = [not any(sentiment[row] for row in fold.measure) for fold in parts]
        assert [scores == (None,) for scores in f1.by_training] == without
        assert np.isfinite(f1.over_folds)


@pytest.mark.parametrize(
    "wrong",
    [
        {"folds": 1},
        {"seeds": 0},
        {"seeds": 10**12},
        {"splits": ()},
        {"seed": -1},
        {"modalities": ("smell",)},
        {"fit": {"loss": {"teacher_weight": 0.9}}},
        {"fit": {"loss": {"teacher_temperature": 1.0}}},
    ],
)
def test_settings_without_meaning_are_refused(wrong: dict) -> None:
    with pytest.raises(UsageError):
        CrossvalConfig.from_mapping(wrong)


def test_scores_of_a_seed_are_those_of_its_rows_together(trained: CrossvalReport) -> None:
    """Not a mean over folds: weighted F1 of all rows at once."""
    f1 = trained.emotion[0]
    mean = np.mean([by_seed[0] for by_seed in f1.by_training])
    assert f1.by_seed[0] != pytest.approx(mean, abs=1e-6)
    assert f1.by_seed[0] == pytest.approx(mean, abs=0.05)
    assert weighted_f1(np.array([0, 1]), np.array([0, 1])) == 1


def test_features_of_encoders_that_saw_the_labels_of_train_are_refused(
    config: CrossvalConfig,
    write_split: Callable[..., FeatureCache],
    planted_recipe: Callable,
) -> None:
    recipe = planted_recipe(["text", "audio"])
    text, audio = recipe.encoders
    tuned = dataclasses.replace(
        recipe, encoders=(dataclasses.replace(text, weights="finetuned"), audio)
    )
    write_split("train", 60, recipe=tuned)
    write_split("dev", 60, recipe=tuned)
    with pytest.raises(MismatchError, match="fine-tuned on the labels of train"):
        crossval(config)
    load_pooled(dataclasses.replace(config, modalities=("audio",)))  # that encoder was not
    load_pooled(dataclasses.replace(config, splits=("dev",)))


def test_a_modality_that_a_fold_never_sees_is_refused(
    config: CrossvalConfig, plant_cache: Callable[..., FeatureCache]
) -> None:
    """Its standardisation would be no numbers, and so would every prediction."""
    for split, rows in (("train", 300), ("dev", 60)):
        cache = plant_cache(split, rows)
        present = {"text": np.ones(rows, np.bool_), "audio": np.arange(rows) < 2}
        if split == "dev":
            present["audio"][:] = False
        write_cache(config.features / f"{split}.h5", dataclasses.replace(cache, present=present))
    with pytest.raises(InputError, match=r"fold . of 3: audio is absent in all"):
        crossval(config)


def test_an_epoch_is_never_chosen_on_rows_without_labels(
    config: CrossvalConfig, plant_cache: Callable[..., FeatureCache]
) -> None:
    for split, rows in (("train", 300), ("dev", 60)):
        cache = plant_cache(split, rows)
        labels = {
            name: [label if row % 60 < 5 else "" for row, label in enumerate(getattr(cache, name))]
            for name in ("emotion", "sentiment")
        }
        write_cache(config.features / f"{split}.h5", dataclasses.replace(cache, **labels))
    with pytest.raises(InputError, match=r"rows to (train on|choose the epoch by) has a label"):
        crossval(config)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("rows", "folds"), [(25, 5), (20, 2), (60, 12)])
def test_few_rows_are_dealt_by_dialogue_alone_without_a_librarys_warning(
    rows: int, folds: int, config: CrossvalConfig, write_split: Callable[..., FeatureCache]
) -> None:
    write_split("train", rows)
    write_split("dev", 10)
    made = make_folds(load_pooled(config), folds, seed=0)
    assert sorted(np.concatenate([fold.measure for fold in made])) == list(range(rows + 10))
    assert all(len(part) for fold in made for part in (fold.train, fold.choose, fold.measure))


def test_a_fold_that_leaves_one_dialogue_is_reported_in_one_line(
    config: CrossvalConfig, write_split: Callable[..., FeatureCache]
) -> None:
    write_split("train", 10)
    write_split("dev", 5)
    with pytest.raises(InputError, match="leaves one dialogue"):
        crossval(dataclasses.replace(config, folds=2))


@pytest.mark.parametrize(
    ("out", "error"),
    [(".", StorageError), ("features/train.h5", UsageError), ("features/dev.h5/x", StorageError)],
)
def test_nothing_is_trained_where_the_result_cannot_be_written(
    out: str, error: type[Exception], config: CrossvalConfig, tmp_path: Path
) -> None:
    before = (config.features / "train.h5").read_bytes()
    with pytest.raises(error):
        crossval(dataclasses.replace(config, out=tmp_path / out), lambda *_: pytest.fail("trained"))
    assert (config.features / "train.h5").read_bytes() == before


def test_a_result_replaces_an_earlier_one(brief: CrossvalConfig, tmp_path: Path) -> None:
    once = dataclasses.replace(brief, folds=2, out=tmp_path / "deep" / "crossval.json")
    crossval(once)
    crossval(once)
    assert json.loads((tmp_path / "deep" / "crossval.json").read_text())["seeds"] == 1


def test_the_command_prints_one_json_object(config: CrossvalConfig) -> None:
    from typer.testing import CliRunner

    from cli import app

    options = ["--folds", "3", "--seeds", "1", "--epochs", "2", "--fusion", "gated", "--json"]
    done = CliRunner().invoke(app, ["crossval", "--features", str(config.features), *options])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["emotion"][0]["name"] == "weighted F1"
    assert told["settings"]["model"]["fusion"] == "gated"
