"""What `meld demo` ends with; the whole of it takes minutes."""

from pathlib import Path

import pytest
from rich.console import Console

from console.show.demo import render_demo
from fusion.experiments import demo
from fusion.experiments.demo import DemoConfig, DemoReport, DemoRow
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig
from fusion.training.train import train_fusion
from pipeline.schema import MODALITIES


@pytest.mark.heavy
def test_it_ends_with_a_page_of_one_clip_by_the_model_that_sees_all(
    corpus: Path, features: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    run = demo._run_folder(runs, MODALITIES, 0)
    train_fusion(TrainConfig(features=features, out=run, fit=FitConfig(epochs=1)))
    prediction = demo._predict_one(DemoConfig(out=tmp_path), corpus, runs)
    assert corpus in prediction.clip.parents
    assert prediction.label == "neutral" or prediction.label in prediction.emotion.probabilities
    assert prediction.page == tmp_path / "predictions" / f"{prediction.clip.name}.meld.html"
    assert "</html>" in prediction.page.read_text()
    row = DemoRow(modalities=MODALITIES, emotion_f1=(0.5,), sentiment_f1=(0.5,))
    report = DemoReport(
        out=tmp_path,
        clips=1,
        rows=(DemoRow(modalities=("text",), emotion_f1=(0.7,), sentiment_f1=(0.4,)), row),
        majority_emotion_f1=0.1,
        majority_sentiment_f1=0.1,
        random_modalities=(),
        seconds={},
        plot=tmp_path / "demo.png",
        prediction=prediction,
    )
    assert report.to_dict()["prediction"]["page"] == str(prediction.page)
    console = Console(width=400, record=True, file=(tmp_path / "shown").open("w"))
    console.print(render_demo(report))
    shown = console.export_text()
    assert "Fusion loses 20.0 points of emotion weighted F1 against the best single" in shown
    last = shown.rstrip().splitlines()[-2]
    assert last.rstrip().endswith(str(prediction.page))
