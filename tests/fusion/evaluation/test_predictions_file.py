"""What a run says of every row, as a table that other programs read."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fusion.data.load import load_split
from fusion.evaluation.evaluate import EvaluateConfig, evaluate
from fusion.evaluation.predictions_file import check_predictions_file
from fusion.inference.checkpoint import read_checkpoint
from fusion.inference.predict import predict_rows
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig
from fusion.training.train import train_fusion
from pipeline.errors import StorageError, UsageError
from pipeline.schema import EMOTIONS, SENTIMENTS


@pytest.fixture
def run(write_split, features: Path, tmp_path: Path) -> Path:
    for split, rows in (("train", 200), ("dev", 60)):
        write_split(split, rows)
    config = TrainConfig(features=features, out=tmp_path / "run", fit=FitConfig(epochs=2))
    return train_fusion(config).run


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["dev.csv", "dev.parquet"])
def test_every_row_has_its_key_labels_and_probabilities(
    run: Path, features: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / name
    report = evaluate(EvaluateConfig(run=run, split="dev", predictions=out), draw=False)
    table = pd.read_csv(out) if out.suffix == ".csv" else pd.read_parquet(out)
    data = load_split(features, "dev", modalities=None, input="raw")
    assert [tuple(row) for row in table[["split", "dialogue_id", "utterance_id"]].values] == [
        tuple(key) for key in data.keys
    ]
    assert list(table["text"]) == list(data.text)
    right = table["true_emotion"] == table["predicted_emotion"]
    assert report.emotion.model is not None
    assert right.mean() == pytest.approx(report.emotion.model.accuracy)
    checkpoint = read_checkpoint(run)
    assert checkpoint.decoding is not None
    predicted = predict_rows(checkpoint, data, run="")
    for head, names in (("emotion", EMOTIONS), ("sentiment", SENTIMENTS)):
        found = table[[f"{head}_{each}" for each in names]].to_numpy()
        temperature = getattr(checkpoint.decoding, head)
        logits = getattr(predicted, f"{head}_logits")
        np.testing.assert_allclose(found, np.exp(temperature.log_probabilities(logits)), atol=1e-9)
    assert table["text_present"].all()
    # Its own file is replaced.
    evaluate(EvaluateConfig(run=run, split="dev", predictions=out), draw=False)


def test_a_table_of_a_name_that_is_no_utf_8_is_known_again(tmp_path: Path) -> None:
    columns = ("dialogue_id", "utterance_id", "true_emotion", "true_sentiment")
    pd.DataFrame({name: [1] for name in columns}).to_parquet(tmp_path / "dev.parquet")
    check_predictions_file((tmp_path / "dev.parquet").rename(tmp_path / "n\udcff.parquet"))


@pytest.mark.heavy
def test_another_table_stays_and_nothing_is_measured(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.csv"
    mine.write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="another kind of table and is left as it is"):
        evaluate(EvaluateConfig(run=run, split="dev", predictions=mine))
    assert mine.read_text() == "a,b\n1,2\n"
    with pytest.raises(UsageError, match=r"ends in \.csv or \.parquet"):
        evaluate(EvaluateConfig(run=run, split="dev", predictions=tmp_path / "x.xlsx"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(StorageError, match="not a regular file"):
        evaluate(EvaluateConfig(run=run, split="dev", predictions=tmp_path / "folder.csv"))
    assert not (run / "evaluation-dev.json").exists()
