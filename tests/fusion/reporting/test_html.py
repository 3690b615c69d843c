"""One page about runs: complete by itself, true to the numbers, deaf to what a corpus says."""

import base64
import dataclasses
import json
import math
import re
import shlex
import subprocess
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from console.show.page import show_page
from fusion.evaluation.bootstrap import Interval
from fusion.experiments.ablation import read_ablation
from fusion.finetuning.job import FinetuneConfig
from fusion.finetuning.loop import TuneConfig
from fusion.inference.checkpoint import read_checkpoint
from fusion.model.dims import ModelConfig
from fusion.reporting.gather import RunReport, gather
from fusion.reporting.html import (
    HtmlReportConfig,
    describe_not_compared,
    render_page,
    write_html_report,
)
from fusion.reporting.reproduce import remake
from fusion.reporting.run_charts import draw_charts
from fusion.reporting.run_info import describe_run
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig
from fusion.training.history import read_history
from fusion.training.losses import LossConfig
from fusion.training.train import train_fusion
from pipeline.cache.format import write_cache
from pipeline.errors import CacheCorrupt, InputError, StorageError, UsageError
from pipeline.html.stills import WIDTH, read_stills
from pipeline.schema import ClipKey
from pipeline.settings import build_config, describe_config
from tests.conftest import BROWSER

pytestmark = pytest.mark.heavy

VOID = frozenset("area base br col embed hr img input link meta source track wbr".split())
HOSTILE = (
    "<script>alert('x')</script> & <img src=x onerror=y>",
    "\"></td></table><b>' {{ 7 * 7 }} {% raw %}",
    "w" * 5000,
    "\u202eמה קורה, חבר? \u202b",
    "so happy 🎉👩‍👩‍👧",
)
RUN_NAME = "a&b <i>first"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, plant_cache) -> Path:
    """Planted caches whose texts attack a page, and a run on them whose name does too."""
    folder = tmp_path_factory.mktemp("report")
    for split, rows in (("train", 300), ("dev", 80), ("test", 90)):
        options = {"modalities": ["text", "video"], "carriers": ["text"], "strength": 1.0}
        cache = plant_cache(split, rows, **options)
        texts = [HOSTILE[row % len(HOSTILE)] for row in range(rows)]
        speakers = ["<b>Joey"] * rows
        cache = dataclasses.replace(cache, text=texts, speaker=speakers)
        write_cache(folder / "features" / f"{split}.h5", cache)
    train_fusion(
        TrainConfig(
            features=folder / "features",
            out=folder / RUN_NAME,
            fit=FitConfig(epochs=3, learning_rate=3e-3, loss=LossConfig(label_smoothing=0.2)),
            model=ModelConfig(dropout=0.25),
            seed=4,
            device="cpu",
        )
    )
    return folder


@pytest.fixture(scope="module")
def gathered(folder: Path) -> RunReport:
    [report] = gather([folder / RUN_NAME], "dev", None)
    return report


@pytest.fixture
def page(gathered: RunReport) -> str:
    return render_page([gathered], split="dev")


class Reader(HTMLParser):
    """Checks that tags are balanced, and keeps them with what they refer to."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.references: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "srcset", "action", "data", "poster"):
                self.references.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def test_the_page_is_one_file_that_loads_and_runs_nothing(gathered, page):
    still = b"\xff\xd8 a picture"
    stills = dict.fromkeys(gathered.predictions.keys, still)
    for content in (page, render_page([dataclasses.replace(gathered, stills=stills)], split="dev")):
        read = Reader(content)
        assert read.tags.isdisjoint({"script", "link", "iframe", "object", "embed", "base"})
        assert all(each.startswith(("#", "data:image/")) for each in read.references)
        assert not re.search(r"https?://|url\(|@import", content)


def test_the_page_links_to_sections_that_are_there(gathered):
    page = render_page([gathered, gathered], split="dev")
    links = [each[1:] for each in Reader(page).references if each.startswith("#")]
    anchors = re.findall(r' id="([^"]+)"', page)
    assert len(set(anchors)) == len(anchors)
    assert links
    assert set(links) <= set(anchors)


def test_the_numbers_are_those_of_the_report(gathered, page):
    words = Reader(page).words
    for head in (gathered.evaluation.emotion, gathered.evaluation.sentiment):
        for scores in (head.model, head.majority):
            for value in (scores.weighted_f1, scores.macro_f1, scores.accuracy):
                assert f"{value:.3f}" in words
        for each in head.model.classes:
            row = (
                f"{each.label} {each.support} {each.f1:.3f} {each.precision:.3f} {each.recall:.3f}"
            )
            assert row in words
        for label, counts in zip(head.labels, head.model.confusion, strict=True):
            assert f"{label} {' '.join(map(str, counts))}" in words
        assert head.weighted_f1_interval is not None
        low, high = head.weighted_f1_interval.low, head.weighted_f1_interval.high
        assert f"{low:.3f} to {high:.3f}" in words
    assert gathered.evaluation.fingerprint in words
    assert f"always {gathered.evaluation.emotion.majority_label}" in words


def test_random_weights_stand_out(page):
    assert "RANDOM WEIGHTS: video." in Reader(page).words


def test_what_a_corpus_or_a_path_says_is_text_and_nothing_else(gathered, page):
    read = Reader(page)
    shown = {mistake.text for mistake in gathered.evaluation.errors.mistakes}
    assert shown == set(HOSTILE)
    assert all(" ".join(text.split()) in read.words for text in (*HOSTILE, RUN_NAME, "<b>Joey"))
    assert "<script>" not in page
    assert not re.search(r"<b>(Joey|')|<i>first|<img", page)


def test_a_mistake_is_shown_with_its_frame(gathered):
    shown, *_ = gathered.evaluation.errors.mistakes
    run = dataclasses.replace(gathered, stills={shown.key: b"\xff\xd8 a picture"})
    page = render_page([run], split="dev")
    [picture] = re.findall(
        r'<img src="data:image/jpeg;base64,([^"]+)" alt="A frame of ([^"]+)"', page
    )
    assert base64.b64decode(picture[0]) == b"\xff\xd8 a picture"
    assert picture[1] == str(shown.key)


def test_what_was_not_measured_has_no_section(gathered):
    def sections(run: RunReport) -> set[str]:
        return set(re.findall(r'<h3 id="run1-(\w+)"', render_page([run], split="dev")))

    bare = dataclasses.replace(
        gathered,
        history=(),
        shapley=None,
        evaluation=dataclasses.replace(
            gathered.evaluation, calibration=None, joint=None, subsets=(), leakage=None, errors=None
        ),
    )
    measured = set("training decides subsets calibration joint leakage errors mistakes".split())
    assert sections(gathered) >= measured
    assert sections(bare) == sections(gathered) - measured
    assert {"classes", "confusion", "recipe", "settings", "again"} <= sections(bare)


def test_a_head_without_labels_is_left_out(gathered):
    head = dataclasses.replace(gathered.evaluation.sentiment, rows=0)
    run = dataclasses.replace(
        gathered, evaluation=dataclasses.replace(gathered.evaluation, sentiment=head)
    )
    words = Reader(render_page([run], split="dev")).words
    assert "Sentiment, weighted F1" not in words
    assert "Emotion, weighted F1" in words


def test_several_runs_are_compared_first(gathered):
    other = dataclasses.replace(gathered, path=Path("elsewhere") / RUN_NAME)
    words = Reader(render_page([gathered, other], split="dev")).words
    assert words.index("The runs side by side") < words.index("Classes")
    assert f"elsewhere/{RUN_NAME}" in words  # two runs of one name are told apart
    assert "+0.000" in words  # a run against itself
    assert "The runs side by side" not in Reader(render_page([gathered], split="dev")).words


def test_runs_on_other_rows_have_no_difference(gathered):
    keys = tuple(
        key._replace(dialogue_id=key.dialogue_id + 99) for key in gathered.predictions.keys
    )
    other = dataclasses.replace(
        gathered, predictions=dataclasses.replace(gathered.predictions, keys=keys)
    )
    words = Reader(render_page([gathered, other], split="dev")).words
    assert "+0.000" not in words
    [told] = describe_not_compared([gathered, other])
    assert "is not compared with" in told
    assert "80 rows" in told
    assert " ".join(told.split()) in words
    assert "not compared" not in Reader(render_page([gathered, gathered], split="dev")).words


def test_the_terminal_says_why_runs_are_not_compared(gathered, capsys):
    rows = dataclasses.replace(gathered.predictions, text=("another corpus",) * 80)
    other = dataclasses.replace(gathered, path=Path("other"), predictions=rows)
    config = HtmlReportConfig(runs=(gathered.path, other.path), split="dev")
    show_page([gathered, other], config, as_json=False)
    assert "measured on other annotations: 80 rows differ" in capsys.readouterr().out
    show_page([gathered, other], config, as_json=True)
    assert len(json.loads(capsys.readouterr().out)["not_compared"]) == 1


@pytest.mark.parametrize("f1", [0.0, 1.0])
def test_runs_that_score_all_alike_have_a_scale(gathered, f1):
    """Of a split with one emotion both the model and the majority are right everywhere."""

    def same(head):
        scores = dataclasses.replace(head.model, weighted_f1=f1)
        bounds = Interval(value=f1, low=f1, high=f1)
        return dataclasses.replace(head, model=scores, majority=scores, weighted_f1_interval=bounds)

    evaluation = dataclasses.replace(
        gathered.evaluation,
        emotion=same(gathered.evaluation.emotion),
        sentiment=same(gathered.evaluation.sentiment),
    )
    run = dataclasses.replace(gathered, evaluation=evaluation)
    assert f"{f1:.3f}" in Reader(render_page([run, run], split="dev")).words


@pytest.mark.parametrize("settings", [{"model": {"fusion": {"x": 1}}}, {"seed": {"x": 1}}, {}])
def test_settings_of_another_shape_are_shown_nevertheless(gathered, folder, settings):
    checkpoint = read_checkpoint(folder / RUN_NAME)
    checkpoint = dataclasses.replace(checkpoint, settings=settings)
    made = remake(checkpoint, folder / RUN_NAME, data=None)
    assert made.commands[-1].startswith("meld train-fusion")


def test_a_history_that_holds_no_numbers_is_named(tmp_path):
    epoch = dict.fromkeys(("epoch", "train_loss", "dev_loss", "score", "seconds"), 1)
    epoch |= {"dev_emotion_f1": 0.5, "dev_sentiment_f1": None, "learning_rate": 0.1}
    path = tmp_path / "history.jsonl"
    path.write_text(json.dumps(epoch))
    assert read_history(path)[0].dev_sentiment_f1 is None
    path.write_text(json.dumps({**epoch, "epoch": 0, "train_loss": None, "dev_emotion_f1": None}))
    assert read_history(path)[0].train_loss is None
    values = [{"train_loss": "x"}, {"score": None}, {"dev_loss": None}, {"train_loss": math.nan}]
    values += [{"epoch": 1.5}, {"score": True}, {"seconds": math.inf}]
    damaged = [json.dumps({**epoch, **changed}) for changed in values]
    for damage in ("[]", *damaged, "[" * 100_000):
        path.write_text(damage)
        with pytest.raises(CacheCorrupt, match=r"history\.jsonl: not a training history"):
            read_history(path)


def test_a_loss_of_dev_that_overflowed_is_null_in_json_and_left_out_of_the_curve(
    gathered: RunReport, folder: Path
):
    """The scores of such an epoch are fine, and the run may hold its weights."""
    [first, *_] = gathered.history
    overflowed = [first, dataclasses.replace(first, epoch=2, dev_loss=math.inf)]
    info = dataclasses.replace(describe_run(folder / RUN_NAME), history=tuple(overflowed))
    told = json.dumps(info.to_dict(), allow_nan=False)
    assert [each["dev_loss"] for each in json.loads(told)["epochs"]] == [first.dev_loss, None]
    with_it = dataclasses.replace(gathered, history=tuple(overflowed))
    assert not re.search(r"\b(inf|nan)\b", draw_charts(with_it)["losses"])


def test_the_commands_give_the_settings_again(gathered, folder):
    [extract, train] = gathered.remake.commands
    assert shlex.split(extract)[:2] == ["meld", "extract"]
    assert "--weights video=random" in extract
    words = shlex.split(train)
    options = dict(zip(words[2::2], words[3::2], strict=True))
    assert options.pop("--config") == "train.toml"
    values = tomllib.loads(gathered.remake.files["train.toml"])
    given = {name[2:]: value for name, value in options.items()}
    config = TrainConfig.from_mapping({**values, **given, "seed": int(given["seed"])})
    assert describe_config(config) == gathered.settings


def test_the_commands_give_a_training_from_a_start_again(folder, tmp_path, monkeypatch):
    """In another folder too; and a default, where the start has something else."""
    monkeypatch.chdir(tmp_path)
    start = TrainConfig(
        features=folder / "features",
        modalities=("text",),
        out=Path("start"),
        model=ModelConfig(hidden=16, dropout=0.1),
        fit=FitConfig(epochs=1),
    )
    train_fusion(start)
    model = ModelConfig(hidden=16)
    run = train_fusion(dataclasses.replace(start, start=start.out, out=Path("on"), model=model)).run
    checkpoint = read_checkpoint(run)
    made = remake(checkpoint, run, data=None)
    words = shlex.split(made.commands[-1])
    given = {
        name[2:]: value
        for name, value in zip(words[2::2], words[3::2], strict=True)
        if name != "--config"
    }
    given["modalities"] = given["modalities"].split(",")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = TrainConfig.from_mapping({**tomllib.loads(made.files["train.toml"]), **given})
    assert describe_config(config) == dict(checkpoint.settings)


def test_layers_are_given_again_only_for_encoders_that_have_several(folder):
    checkpoint = read_checkpoint(folder / RUN_NAME)
    some = checkpoint.recipe.encoders[0]

    def settings(**encoders):
        specs = tuple(
            dataclasses.replace(some, modality=modality, name=name, layers=layers)
            for modality, (name, layers) in encoders.items()
        )
        recipe = dataclasses.replace(checkpoint.recipe, encoders=specs)
        made = remake(dataclasses.replace(checkpoint, recipe=recipe), folder, data=None)
        assert ("--config extract.toml" in made.commands[0]) == ("extract.toml" in made.files)
        return tomllib.loads(made.files.get("extract.toml", ""))

    models = settings(text=("org/bert", (-1,)), audio=("org/wavlm", (0, 4)))
    assert models["encoders"] == {"text_layers": [-1], "audio_layers": [0, 4]}
    assert "encoders" not in settings(text=("org/bert", (0, 1)), audio=("org/wavlm", (0, 1, 2)))
    assert "encoders" not in settings(text=("glove", (-1,)), audio=("spectrogram", (-1,)))


def test_legacy_test_clips_are_warned_of_and_asked_for_again(gathered, folder):
    assert "(fixed)" in Reader(render_page([gathered], split="dev")).words
    assert "--test-clips fixed" in gathered.remake.commands[0]
    checkpoint = read_checkpoint(folder / RUN_NAME)
    decode = dataclasses.replace(checkpoint.recipe.decode, test_clips="legacy")
    recipe = dataclasses.replace(checkpoint.recipe, decode=decode)
    checkpoint = dataclasses.replace(checkpoint, recipe=recipe)
    assert "--test-clips legacy" in remake(checkpoint, folder, data=None).commands[0]
    run = dataclasses.replace(
        gathered,
        recipe=recipe,
        evaluation=dataclasses.replace(gathered.evaluation, test_clips="legacy"),
    )
    words = Reader(render_page([run, run], split="dev")).words
    assert "Test clips: legacy." in words
    assert "test clips: legacy" in words


def test_features_of_a_finetuned_run_bring_their_own_test_clips(folder):
    """`meld extract --encoders` refuses --test-clips."""
    checkpoint = read_checkpoint(folder / RUN_NAME)
    encoders = tuple(
        dataclasses.replace(spec, weights="finetuned") for spec in checkpoint.recipe.encoders
    )
    recipe = dataclasses.replace(checkpoint.recipe, encoders=encoders)
    made = remake(dataclasses.replace(checkpoint, recipe=recipe), folder, data=None)
    assert "--encoders" in made.commands[0]
    assert "--test-clips" not in made.commands[0]


def test_the_command_of_a_finetuned_run_gives_its_settings_again(folder, tmp_path):
    begun = FinetuneConfig(
        run=tmp_path / "start",  # trained on the way
        data=tmp_path / "data",
        features=folder / "features",
        unfreeze=("text",),
        seed=3,
        tune=TuneConfig(micro_batch_size=4),
    )
    checkpoint = dataclasses.replace(
        read_checkpoint(folder / RUN_NAME), finetuned=("text",), settings=describe_config(begun)
    )
    made = remake(checkpoint, tmp_path, data=None)
    [command] = made.commands
    words = shlex.split(command)
    assert words[:3] == ["meld", "finetune", "--end-to-end"]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert "--run" not in options
    assert options["--unfreeze"] == "text"
    assert options["--seed"] == "3"
    assert options["--features"] == str(folder / "features")
    assert options["--data"] == str(tmp_path / "data")
    tables = tomllib.loads(made.files[options["--config"]])
    assert build_config(TuneConfig, tables["tune"]) == begun.tune


def test_an_ablation_is_a_table(gathered, tmp_path):
    row = {"modalities": ["text", "audio"], "fusion": "<gated>", "seeds": [0, 1]}
    row |= {"emotion_f1": [0.5, 0.6], "sentiment_f1": [0.7, 0.7], "sentiment_interval": None}
    row |= {"emotion_interval": {"value": 0.55, "low": 0.4, "high": 0.65}}
    path = tmp_path / "ablation.json"
    path.write_text(json.dumps({"split": "dev", "rows": [row]}))
    words = Reader(render_page([gathered], split="test", ablation=read_ablation(path))).words
    assert (
        "text + audio <gated> 2 0.550 ± 0.050 0.400 to 0.650 0.700 ± 0.000 -" in words
    )  # as meld ablate says
    assert "weighted F1 on dev, mean" in words  # whatever the page is on
    too_large = json.dumps({"split": "dev", "rows": [{**row, "emotion_f1": [10**400]}]})
    for damage in ('{"split": "dev", "rows": [{"modalities": 3}]}', too_large):
        path.write_text(damage)
        with pytest.raises(InputError, match=r"ablation\.json: not what meld ablate writes"):
            read_ablation(path)


def test_a_still_is_a_small_jpeg_and_a_missing_clip_has_none(corpus):
    keys = [ClipKey("test", 0, 0), ClipKey("test", 999, 0)]
    stills = read_stills(corpus, keys, "fixed")
    assert set(stills) == {keys[0]}
    content = stills[keys[0]]
    assert content.startswith(b"\xff\xd8\xff")
    assert len(content) < 40_000
    import torch
    from torchvision.io import decode_jpeg

    shape = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8)).shape
    assert tuple(shape) == (3, WIDTH * 9 // 16, WIDTH)


def test_nothing_is_measured_where_the_page_cannot_be_written(folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    runs = (folder / RUN_NAME,)
    for out in (tmp_path, tmp_path / "file" / "report.html"):
        with pytest.raises(StorageError, match="cannot write"):
            write_html_report(HtmlReportConfig(runs=runs, out=out))
    cache = folder / "features" / "train.h5"
    before = cache.read_bytes()
    for out in (cache, folder / RUN_NAME / "config.json"):
        with pytest.raises(UsageError, match="another kind of file"):
            write_html_report(HtmlReportConfig(runs=runs, out=out))
    assert cache.read_bytes() == before
    out = tmp_path / "report.html"
    with pytest.raises(InputError, match="no such folder; --data"):
        write_html_report(HtmlReportConfig(runs=runs, out=out, data=tmp_path / "none"))
    assert not list((folder / RUN_NAME).glob("test-evaluations*"))


def test_the_command_line_writes_a_page_or_says_in_one_line_why_not(meld, folder, tmp_path):
    out = tmp_path / "new" / "report.html"
    finished = meld("report", folder / RUN_NAME, "--split", "dev", "--out", out)
    assert finished.status == 0, finished.err
    assert str(out) in finished.out
    assert RUN_NAME in Reader(out.read_text()).words
    for arguments, status in (
        ([folder / RUN_NAME, "--split", "dev", "--out", tmp_path], 5),
        ([tmp_path], 4),
    ):
        refused = meld("report", *arguments)
        assert refused.status == status, refused.err
        assert len(refused.err.splitlines()) == 1
        assert refused.err.startswith("meld: error: ")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium to open the page with")
def test_a_browser_shows_the_page(page, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page)
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    shown = subprocess.run(
        [BROWSER, *options, "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert shown.returncode == 0, shown.stderr
    assert "Confusion matrices" in shown.stdout
    assert "run1-confusion" in shown.stdout
    assert "<svg" in shown.stdout
