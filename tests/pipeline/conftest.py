"""Splits on their way to a cache, with planted features: no encoder and no cluster is needed."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.extract.shards import SplitWork
from pipeline.parallel.work import ShardFeatures
from pipeline.recipe import EncoderSpec, FeatureRecipe
from pipeline.sample import corpus as sample_corpus
from pipeline.sample.clip import write_clip
from pipeline.sample.corpus import SampleConfig, SampleResult, make_sample
from pipeline.sample.defects import MIN_DIALOGUES, write_defect
from pipeline.sample.plan import ClipPlan
from pipeline.schema import ClipFeatures, ClipKey, LocatedClip, Split, Utterance

PlantSplit = Callable[..., SplitWork]
EncodeShard = Callable[[SplitWork, int], ShardFeatures]


@pytest.fixture
def planted_recipe() -> FeatureRecipe:
    spec = EncoderSpec(
        modality="text",
        name="planted",
        weights="pretrained",
        weights_hash="0" * 64,
        pooling="mean",
        precision="float32",
    )
    return FeatureRecipe(encoders=(spec,), decode=None)


@pytest.fixture
def plant_split(tmp_path: Path) -> PlantSplit:
    """plant_split("dev") is a split of six rows in shards of two, of which nothing is done."""

    def plant(split: Split, *, num_rows: int = 6, rows_hash: str = "1" * 64) -> SplitWork:
        rows = [
            Utterance(key=ClipKey(split, 0, row), text=f"line {row}", emotion="joy")
            for row in range(num_rows)
        ]
        return SplitWork(
            split=split,
            utterances=rows,
            clips=[LocatedClip(utterance=row) for row in rows],
            rows_hash=rows_hash,
            path=tmp_path / "features" / f"{split}.h5",
            rows_per_shard=2,
        )

    return plant


@pytest.fixture
def encode_planted() -> EncodeShard:
    """A shard's features as a worker would hand them back: noise, always the same."""

    def encode(work: SplitWork, index: int) -> ShardFeatures:
        noise = np.random.default_rng(index)
        rows = work.utterances[work.rows_of(index)]
        return ShardFeatures(
            split=work.split,
            index=index,
            features=tuple(
                ClipFeatures(
                    utterance=row, raw={"text": noise.normal(size=(1, 8)).astype(np.float32)}
                )
                for row in rows
            ),
        )

    return encode


@pytest.fixture(scope="session")
def corrupt_corpus(made_once: Callable[..., SampleResult]) -> SampleResult:
    """A generated corpus with every defect of the real one planted. Not to be written to.

    Its intact clips are copies of two, one in stereo and one in 5.1: what they show is no test's
    business, and drawing them all takes longer than the tests of them together.
    """
    drawn: dict[bool, tuple[bytes, float]] = {}

    def draw_once(plan: ClipPlan, path: Path) -> float:
        if plan.surround not in drawn:
            duration_s = write_clip(plan, path)
            drawn[plan.surround] = path.read_bytes(), duration_s
        content, duration_s = drawn[plan.surround]
        path.write_bytes(content)
        return duration_s

    def draw(plan: ClipPlan, path: Path, kind: str) -> float:
        is_intact = kind == "curly_text"  # which is in its row
        return draw_once(plan, path) if is_intact else write_defect(plan, path, kind)

    def make(folder: Path) -> SampleResult:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sample_corpus, "write_clip", draw_once)
            patch.setattr(sample_corpus, "write_defect", draw)
            patch.setattr(sample_corpus, "spawn_pool", lambda size: ThreadPoolExecutor(1))
            return make_sample(
                SampleConfig(out=folder, dialogues=MIN_DIALOGUES, seed=1, corrupt=True)
            )

    return made_once("corrupt", make)
