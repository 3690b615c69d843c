"""What an earlier run left: gone on with, refused, or replaced. No cluster is started."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.cache.format import FeatureCache, read_cache, write_cache
from pipeline.encoders.choice import EncoderRequest
from pipeline.errors import CacheCorrupt, RecipeMismatch, StorageError
from pipeline.extract.extract import ExtractConfig, extract, plan
from pipeline.extract.resume import Progress, begin_split, find_progress
from pipeline.extract.shards import SplitWork, merge, update, write_shard
from pipeline.parallel import engine as parallel
from pipeline.recipe import FeatureRecipe

RunUntil = Callable[..., SplitWork]

CSV = """Dialogue_ID,Utterance_ID,Utterance,Emotion,Sentiment
0,0,Hello,joy,positive
0,1,Go away,anger,negative
0,2,Well,neutral,neutral
"""


@pytest.fixture
def other_recipe(planted_recipe: FeatureRecipe) -> FeatureRecipe:
    spec = dataclasses.replace(planted_recipe.encoders[0], name="other", pooling="other")
    return dataclasses.replace(planted_recipe, encoders=(spec,))


@pytest.fixture
def run_until(plant_split: Any, encode_planted: Any, planted_recipe: FeatureRecipe) -> RunUntil:
    """run_until("killed", shards=[0]) or run_until("finished"): what a run leaves of dev."""

    def run(
        end: str,
        shards: Sequence[int] = (0, 1, 2),
        *,
        recipe: FeatureRecipe = planted_recipe,
        overwrite: bool = False,
    ) -> SplitWork:
        work = begin_split(find_progress(plant_split("dev"), recipe, overwrite))
        for index in shards:
            write_shard(work, encode_planted(work, index), recipe)
        if end == "finished":
            merge(work)
        return work

    return run


def test_a_killed_run_goes_on_with_its_finished_shards(
    run_until: RunUntil, plant_split: Any, planted_recipe: FeatureRecipe
) -> None:
    run_until("killed", [0, 2])
    work = plant_split("dev")
    work.rows_per_shard = 5  # another setting now; the shards there are of two rows
    work = begin_split(find_progress(work, planted_recipe, overwrite=False))
    assert (work.done, work.rows_per_shard, work.rows_done()) == ({0, 2}, 2, 4)


def test_a_killed_overwrite_goes_on_with_the_option_or_without(
    run_until: RunUntil, plant_split: Any, planted_recipe: FeatureRecipe, tmp_path: Path
) -> None:
    run_until("killed", [0, 1], overwrite=True)
    for overwrite in (True, False):
        work = plant_split("dev")
        work = begin_split(find_progress(work, planted_recipe, overwrite))
        assert work.done == {0, 1}


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_killed_overwrite_of_a_finished_cache_goes_on_and_keeps_it_until_the_end(
    run_until: RunUntil,
    plant_split: Any,
    planted_recipe: FeatureRecipe,
    other_recipe: FeatureRecipe,
    overwrite: bool,
) -> None:
    finished = run_until("finished", recipe=other_recipe).path
    before = finished.read_bytes()
    run_until("killed", [0, 1], overwrite=True)
    work = plant_split("dev")
    work = begin_split(find_progress(work, planted_recipe, overwrite))
    assert (work.done, work.is_finished) == ({0, 1}, False)
    assert finished.read_bytes() == before


def test_a_finished_cache_is_still_itself_beside_a_killed_overwrite_in_another_way(
    run_until: RunUntil, plant_split: Any, planted_recipe: FeatureRecipe, other_recipe: Any
) -> None:
    run_until("finished")
    left = run_until("killed", [0], recipe=other_recipe, overwrite=True)
    work = plant_split("dev")
    work = begin_split(find_progress(work, planted_recipe, overwrite=False))
    assert work.is_finished
    assert left.shard_path(0).exists()


def test_a_run_killed_while_it_tidies_up_is_a_finished_one(
    run_until: RunUntil,
    plant_split: Any,
    planted_recipe: FeatureRecipe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    left = run_until("killed", overwrite=True)  # every shard is there
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.extract.shards.Path.iterdir", interrupt)
        with pytest.raises(KeyboardInterrupt):
            merge(left)
    work = plant_split("dev")
    work = begin_split(find_progress(work, planted_recipe, overwrite=False))
    assert work.is_finished


def test_a_stale_projection_that_cannot_be_removed_is_reported_and_the_shards_stay(
    plant_split: Any, encode_planted: Any, planted_recipe: FeatureRecipe
) -> None:
    work = begin_split(find_progress(plant_split("train"), planted_recipe, overwrite=False))
    stale = work.path.parent / "projection.h5"
    stale.mkdir()  # as little to be removed as a file on a disk that fails
    for index in range(3):
        write_shard(work, encode_planted(work, index), planted_recipe)
    with pytest.raises(StorageError, match=f"{stale}: cannot be removed: "):
        merge(work)
    assert work.shard_path(2).is_file()


def test_overwrite_starts_afresh_after_a_run_without_it(
    run_until: RunUntil, plant_split: Any, planted_recipe: FeatureRecipe
) -> None:
    left = run_until("killed", [0])
    work = plant_split("dev")
    work = begin_split(find_progress(work, planted_recipe, overwrite=True))
    assert work.done == set()
    assert not left.shard_path(0).exists()


def test_overwrite_replaces_an_overwrite_of_another_recipe(
    run_until: RunUntil, plant_split: Any, planted_recipe: FeatureRecipe, other_recipe: Any
) -> None:
    run_until("killed", [0], recipe=other_recipe, overwrite=True)
    work = plant_split("dev")
    work = begin_split(find_progress(work, planted_recipe, overwrite=True))
    assert work.done == set()


def test_an_unfinished_run_of_another_recipe_or_other_annotations_is_refused_and_kept(
    run_until: RunUntil, plant_split: Any, planted_recipe: FeatureRecipe, other_recipe: Any
) -> None:
    left = run_until("killed", [0])
    with pytest.raises(
        RecipeMismatch, match=r"unfinished .*\(there != here: text\.name: planted != other\);"
    ):
        find_progress(plant_split("dev"), other_recipe, overwrite=False)
    with pytest.raises(RecipeMismatch, match="other annotations than the dev CSV"):
        find_progress(plant_split("dev", rows_hash="2" * 64), planted_recipe, overwrite=False)
    assert left.shard_path(0).exists()


@pytest.mark.parametrize(
    "rows",
    [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 5], [5, 4, 3, 2, 1, 0]],
    ids=["cut", "doubled", "turned round"],
)
@pytest.mark.parametrize("emotion", ["joy", "anger"])
def test_a_cache_of_other_rows_than_it_says_is_refused_and_kept(
    run_until: RunUntil,
    plant_split: Any,
    planted_recipe: FeatureRecipe,
    rows: list[int],
    emotion: str,
) -> None:
    finished = run_until("finished").path
    write_cache(finished, pick(read_cache(finished), rows))
    before = finished.read_bytes()
    work = plant_split("dev")
    work.utterances = [dataclasses.replace(row, emotion=emotion) for row in work.utterances]
    with pytest.raises(RecipeMismatch, match=r"dev\.h5 holds other rows than the dev CSV here"):
        find_progress(work, planted_recipe, overwrite=False)
    assert finished.read_bytes() == before


def test_labels_go_to_the_rows_of_their_keys(
    run_until: RunUntil, plant_split: Any, planted_recipe: FeatureRecipe
) -> None:
    emotions = ("joy", "anger", "fear", "neutral", "disgust", "sadness")
    finished = run_until("finished").path
    work = plant_split("dev")
    work.utterances = [
        dataclasses.replace(row, emotion=emotion)
        for row, emotion in zip(work.utterances, emotions, strict=True)
    ]
    write_cache(finished, pick(read_cache(finished), [5, 4, 3, 2, 1, 0]))
    update(work)
    assert read_cache(finished).emotion == list(reversed(emotions))
    write_cache(finished, pick(read_cache(finished), [0, 1, 2]))
    with pytest.raises(RecipeMismatch, match="holds other rows than the dev CSV here"):
        update(work)


def pick(cache: FeatureCache, rows: list[int]) -> FeatureCache:
    """These rows alone, in this order, under the hash of all."""
    return dataclasses.replace(
        cache,
        dialogue_id=cache.dialogue_id[rows],
        utterance_id=cache.utterance_id[rows],
        text=[cache.text[row] for row in rows],
        speaker=[cache.speaker[row] for row in rows],
        emotion=[cache.emotion[row] for row in rows],
        sentiment=[cache.sentiment[row] for row in rows],
        raw={name: values[rows] for name, values in cache.raw.items()},
        present={name: there[rows] for name, there in cache.present.items()},
    )


def test_a_damaged_shard_is_made_again(
    run_until: RunUntil, plant_split: Any, planted_recipe: FeatureRecipe
) -> None:
    left = run_until("killed", [0, 1])
    left.shard_path(1).write_bytes(left.shard_path(1).read_bytes()[:-100])
    work = plant_split("dev")
    work = begin_split(find_progress(work, planted_recipe, overwrite=False))
    assert work.done == {0}
    assert not left.shard_path(1).exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: "{",
        lambda plan: "[]",
        lambda plan: "[" * 200_000,
        lambda plan: {**plan, "recipe": "[" * 200_000},
        lambda plan: "\udcff",
        lambda plan: {**plan, "recipe": "{}"},
        lambda plan: {**plan, "rows_per_shard": 0},
        lambda plan: {**plan, "rows_per_shard": "2"},
        lambda plan: {**plan, "rows_per_shard": 1.5},
        lambda plan: {**plan, "rows_hash": None},
        lambda plan: {**plan, "overwrite": "no"},
        lambda plan: {name: value for name, value in plan.items() if name != "rows_hash"},
    ],
)
def test_a_damaged_plan_is_named_with_the_folder_to_delete(
    run_until: RunUntil,
    plant_split: Any,
    planted_recipe: FeatureRecipe,
    change: Callable[[dict[str, Any]], Any],
) -> None:
    folder = run_until("killed", [0]).folder
    damaged = change(json.loads((folder / "plan.json").read_text()))
    text = damaged if isinstance(damaged, str) else json.dumps(damaged)
    (folder / "plan.json").write_text(text, errors="surrogateescape")
    with pytest.raises(CacheCorrupt) as caught:
        find_progress(plant_split("dev"), planted_recipe, overwrite=False)
    assert str(caught.value).startswith(f"{folder / 'plan.json'}: cannot be read")
    assert str(caught.value).endswith(f"delete {folder}")
    assert (folder / "shard-00000.h5").exists()


def test_half_written_files_of_a_killed_run_go_and_those_of_other_splits_stay(
    run_until: RunUntil,
) -> None:
    work = run_until("killed", [0])
    mine = [work.path.with_name(".dev.h5.123.tmp"), work.folder / ".shard-00001.h5.123.tmp"]
    others = [work.path.with_name(".train.h5.123.tmp"), work.folder / ".notes.txt.123.tmp"]
    for path in (*mine, *others):
        path.touch()
    begin_split(Progress(work=work))
    assert [path.exists() for path in (*mine, *others)] == [False, False, True, True]


# ------------------------------------------------------------------------------------ dry runs


@pytest.fixture
def config(tmp_path: Path) -> ExtractConfig:
    """Three lines of transcript and nothing else."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dev_sent_emo.csv").write_text(CSV)
    return ExtractConfig(
        data=tmp_path / "data",
        features=tmp_path / "features",
        modalities=("text",),
        encoders=EncoderRequest(text="minilm"),
        precision="float32",
        device="cpu",
        rows_per_shard=1,
    )


@pytest.fixture
def killed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes to the encoding is interrupted there."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(parallel, "encode_shards", interrupt)


@pytest.mark.usefixtures("killed_at_once")
def test_a_dry_run_deletes_nothing_that_a_run_would(config: ExtractConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        extract(config)
    damaged = config.features / ".work" / "dev" / "shard-00000.h5"
    leftover = config.features / ".dev.h5.123.tmp"
    for path in (damaged, leftover):
        path.write_text("half a file")
    before = set(config.features.rglob("*"))
    assert plan(config).rows_done == {"dev": 0}
    assert set(config.features.rglob("*")) == before
    with pytest.raises(KeyboardInterrupt):
        extract(config)
    assert not damaged.exists()
    assert not leftover.exists()


@pytest.mark.usefixtures("killed_at_once")
def test_a_dry_run_of_an_overwrite_leaves_what_it_would_replace(config: ExtractConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        extract(config)
    plan_file = config.features / ".work" / "dev" / "plan.json"
    before = plan_file.read_bytes()
    assert plan(dataclasses.replace(config, overwrite=True)).rows_done == {"dev": 0}
    assert plan_file.read_bytes() == before


def test_a_dry_run_refuses_a_features_path_that_is_a_file(config: ExtractConfig) -> None:
    config.features.write_text("mine")
    with pytest.raises(StorageError, match="features: not a folder"):
        plan(config)
    assert config.features.read_text() == "mine"
