"""The command line as a user meets it: output, messages, exit statuses."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from console.start import GROUPS
from pipeline.cache.format import read_header

Meld = Callable[..., Any]

ROOT = Path(__file__).resolve().parents[1]
SLOW = pytest.mark.slow
COMMANDS = (
    *("download", "doctor", "sample", "extract", "info", "train-fusion", "finetune"),
    *(
        "evaluate",
        "compare",
        "crossval",
        "ablate",
        "search",
        "report",
        "demo",
        "predict",
        "serve",
        "listen",
    ),
    *("config show", "config keys", "convert", "import", "export", "verify"),
)


@pytest.fixture(scope="module")
def run(features: Path, tmp_path_factory: pytest.TempPathFactory, meld: Meld) -> Path:
    """A run trained on the small corpus through the command line."""
    out = tmp_path_factory.mktemp("runs") / "small"
    finished = meld("train-fusion", "--features", features, "--out", out, "--epochs", 2)
    assert finished.status == 0, finished.err
    return out


@pytest.mark.heavy
def test_the_next_command_can_be_copied_and_reads_the_same_features(
    meld: Meld, features: Path, tmp_path: Path
) -> None:
    caches, out = tmp_path / "my caches", tmp_path / "my run"
    shutil.copytree(features, caches)
    words = ("train-fusion", "--features", caches, "--out", out, "--epochs", 1)
    assert f"next: meld evaluate '{out}'\n" in meld(*words).out
    (caches / "test.h5").unlink()
    told = meld(*words, "--overwrite").out
    assert f"next: meld crossval --features '{caches}' (no test cache" in told


def test_alone_it_says_what_it_is_for_and_the_first_steps(meld: Meld) -> None:
    finished = meld()
    assert finished.status == 0
    assert "meld predict talk.mp4" in finished.out
    assert "your own clips" in finished.out
    assert finished.err == ""


def test_help_groups_the_commands_by_what_they_are_for(meld: Meld) -> None:
    shown = meld("--help").out
    places = [shown.index(title) for title in GROUPS]
    assert places == sorted(places)
    for title, names in GROUPS.items():
        part = shown[shown.index(title) :].partition("╰")[0]
        assert [name for name in names if f"│ {name} " not in part] == []
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted({command.split()[0] for command in COMMANDS})


def test_every_command_is_in_a_file_of_its_name() -> None:
    import cli

    files = {
        str(command.name or command.callback.__name__): command.callback.__module__
        for command in cli.app.registered_commands
        if command.callback is not None
    }
    assert len(files) > 20
    others = {"import": "import_features", "verify": "export"}
    assert files == {
        name: f"console.commands.{others.get(name, name.replace('-', '_'))}" for name in files
    }


def test_the_version_names_what_decides_values(meld: Meld) -> None:
    import av
    import torch

    told = dict(line.split(maxsplit=1) for line in meld("--version").out.splitlines())
    assert told["PyTorch"] == torch.__version__.partition("+")[0]
    assert told["PyAV"] == av.__version__
    assert told["libavcodec"] == ".".join(map(str, av.library_versions["libavcodec"]))
    assert {"meld", "torchvision", "transformers"} <= set(told)


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (("trian-fusion",), "Did you mean 'train-fusion'?"),
        (("--verison",), "--version"),
        (("evaluate", "run", "--splt", "dev"), "--split"),
    ],
)
def test_a_mistyped_word_names_the_nearest(
    meld: Meld, arguments: tuple[str, ...], near: str
) -> None:
    finished = meld(*arguments)
    assert finished.status == 2
    assert near in " ".join(finished.err.split())
    assert "meld" in finished.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("train-fusion", "--dropout", "0.3"), "dropout = ... under [model]"),
        (("train-fusion", "--weight-decay=0.1"), "weight_decay = ... under [fit]"),
        (("train-fusion", "--fit.patience", "3"), "patience = ... under [fit]"),
        (("train-fusion", "--label-smothing", "0"), "label_smoothing = ... under [fit.loss]"),
        (("extract", "--channel", "downmix"), "channel = ... into a file for --config"),
        (("predict", "x.mp4", "--threshold", "0.4"), "threshold = ... under [words.speech.voice]"),
        (("config", "show", "finetune", "--flip", "0"), "flip = ... under [tune.augment]"),
    ],
)
def test_a_setting_typed_as_an_option_names_its_key_in_the_settings_file(
    meld: Meld, arguments: tuple[str, ...], told: str
) -> None:
    finished = meld(*arguments)
    command = arguments[2] if arguments[0] == "config" else arguments[0]
    text = " ".join(finished.err.replace("│", " ").split())
    assert finished.status == 2
    assert "No such option: --" in text
    assert told in text
    assert f"meld config keys {command}" in text


def test_an_option_that_is_no_setting_either_names_no_key(meld: Meld) -> None:
    for arguments in (("train-fusion", "--zzz"), ("evaluate", "run", "--dropout", "0.3")):
        finished = meld(*arguments)
        assert finished.status == 2
        assert "TOML" not in finished.err


@pytest.mark.parametrize("verbose", [(), ("-v",), ("--verbose",)])
def test_log_lines_are_shown_where_they_are_asked_for(
    meld: Meld, tmp_path: Path, verbose: tuple[str, ...]
) -> None:
    command = ("train-fusion", "--features", tmp_path, "--epochs", 3, *verbose)
    finished = meld(*command)
    assert finished.status == 4
    assert ("meld: fit.epochs = 3 (option)\n" in finished.err) == bool(verbose)
    assert finished.err.splitlines()[-1].startswith("meld: error: ")


def test_verbose_evaluation_names_the_features_the_rows_and_the_test_evaluation(
    meld: Meld, run: Path, features: Path
) -> None:
    quiet = meld("evaluate", run, "--split", "test")
    assert "meld: " not in quiet.err
    lines = meld("evaluate", run, "--split", "test", "-v").err.splitlines()
    assert f"meld: {run}: features from {features}" in lines
    assert any(line.startswith(f"meld: {run}: ") and " rows of test, " in line for line in lines)
    assert any("test evaluation " in line and line.endswith(" is recorded") for line in lines)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(meld: Meld, command: str) -> None:
    finished = meld(*command.split(), "--help")
    assert finished.status == 0
    assert f"meld {command}" in finished.out
    assert "Example" in finished.out
    assert "--json" in finished.out
    assert "…" not in finished.out  # nothing is cut at the width of a small terminal
    examples = finished.out.partition("Example")[2]
    assert len(re.findall(r"^(?: +• |: )meld [a-z]", examples, re.MULTILINE)) == len(
        re.findall(r"\bmeld [a-z]", examples)  # none begins within a line
    )


def test_a_sample_is_described_as_one_json_object(
    meld: Meld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(  # what it makes is another test's business
        "pipeline.sample.corpus._write_media_files",
        lambda config, plans, *_: {plan.key: 1.0 for plan in plans},
    )
    finished = meld("sample", "--out", tmp_path / "data", "--dialogues", 3, "--json")
    assert finished.status == 0, finished.err
    assert set(finished.json) == {"root", "rows", "defects"}
    assert set(finished.json["rows"]) == {"train", "dev", "test"}


def test_info_tells_rows_presence_recipe_and_random_weights(meld: Meld, features: Path) -> None:
    finished = meld("info", features / "train.h5", "--verify", "--json")
    assert finished.status == 0, finished.err
    told = finished.json
    header = read_header(features / "train.h5")
    assert told["fingerprint"] == header.recipe.fingerprint
    assert told["present"] == dict.fromkeys(("text", "video", "audio"), header.num_rows)
    assert sum(told["emotions"].values()) == header.num_rows
    assert told["random_weights"] == ["video"]
    assert told["damaged"] == []
    assert "video: RANDOM WEIGHTS" in meld("info", features / "train.h5").out


def test_info_of_a_run_tells_its_settings_its_best_epoch_and_the_commands_that_make_it_again(
    meld: Meld, run: Path
) -> None:
    finished = meld("info", run, "--json")
    assert finished.status == 0, finished.err
    told = finished.json
    assert told["settings"]["fit.epochs"] == 2
    assert "fit.learning_rate" not in told["settings"]  # the default
    assert told["best"]["epoch"] in (1, 2)
    assert len(told["epochs"]) == 2
    extract, train = told["commands"]
    assert extract.startswith("meld extract --split all")
    assert f"--out {run}" in train
    assert told["settings_files"]["train.toml"] == "[fit]\nepochs = 2"
    shown = meld("info", run).out
    assert "fit.epochs = 2" in shown
    assert train in shown


def test_info_of_a_folder_of_caches_names_one_and_options_of_caches_are_refused_for_a_run(
    meld: Meld, features: Path, run: Path
) -> None:
    of_caches = meld("info", features)
    assert of_caches.status == 2
    assert f"name one: {features / 'train.h5'}" in of_caches.err
    assert meld("info", run, "--verify").status == 2
    assert meld("info", features.parent / "nothing").status == 5


def test_a_flipped_bit_is_found_and_named(meld: Meld, features: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "train.h5"
    content = bytearray((features / "train.h5").read_bytes())
    middle = content.find(_some_row_of_video(features / "train.h5"))
    assert middle > 0
    content[middle] ^= 1
    damaged.write_bytes(content)
    finished = meld("info", damaged, "--verify")
    assert finished.status == 5
    assert "raw/video" in finished.err


def _some_row_of_video(path: Path) -> bytes:
    from pipeline.cache.format import read_cache

    return read_cache(path).raw["video"][2].tobytes()


def test_a_trained_run_is_measured_beside_the_majority_baseline(
    meld: Meld, run: Path, plots: None
) -> None:
    finished = meld("evaluate", run, "--split", "test", "--json")
    assert finished.status == 0, finished.err
    assert set(finished.json["emotion"]) >= {"model", "majority", "labels"}
    assert json.loads((run / "evaluation-test.json").read_text()) == finished.json
    assert list(run.glob("*.png"))
    assert "majority" in meld("evaluate", run, "--split", "dev").out


def test_a_run_is_no_better_than_itself(meld: Meld, run: Path) -> None:
    finished = meld("compare", run, run, "--split", "dev", "--samples", 200, "--json")
    assert finished.status == 0, finished.err
    told = finished.json["emotion"]
    assert (told["won"], told["lost"]) == (0, 0)
    assert "better" not in told["verdict"]
    assert "A: small   B: small" in meld("compare", run, run, "--split", "dev").out


def test_a_training_goes_on_from_a_run_and_takes_its_settings(
    meld: Meld, features: Path, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "on"
    command = ("train-fusion", "--features", features, "--start", run, "--epochs", 1)
    finished = meld(*command, "--context", "dialogue", "--out", out)
    assert finished.status == 0, finished.err
    assert "epoch" in finished.out
    told = json.loads((out / "config.json").read_text())
    assert told["settings"]["start"] == str(run)
    assert told["dims"]["model"]["context"] == "dialogue"
    refused = meld(*command, "--fusion", "gated", "--out", tmp_path / "refused")
    assert refused.status == 2
    assert "fusion: late != gated" in refused.err
    assert meld(*command[:-4], "--start", tmp_path / "nowhere").status == 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("options", [(), ("--json",), ("--help",)])
def test_an_output_that_cannot_be_written_is_reported_in_one_line(
    features: Path, options: tuple[str, ...]
) -> None:
    command = [sys.executable, "-m", "cli", "info", str(features / "dev.h5"), *options]
    with Path("/dev/full").open("w") as full:
        finished = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert finished.returncode == 5
    assert finished.stderr == (
        "meld: error: the output cannot be written: No space left on device\n"
    )


@pytest.mark.parametrize(
    ("arguments", "status", "closed"),
    [
        *(("info {} --json", 0, closed) for closed in (">&-", "2>&-", ">&- 2>&-")),
        ("info --help", 0, ">&-"),
        *(pytest.param("info --help", 0, each, marks=SLOW) for each in ("2>&-", ">&- 2>&-")),
        # `>&-` alone: see below.
        *(("info no.h5", 5, closed) for closed in ("2>&-", ">&- 2>&-")),
    ],
)
def test_an_output_that_is_closed_is_one_that_nobody_wants(
    features: Path, arguments: str, status: int, closed: str
) -> None:
    words = arguments.format(shlex.quote(str(features / "dev.h5")))
    command = f"{shlex.quote(sys.executable)} -m cli {words} {closed}"
    finished = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert finished.returncode == status
    assert "Traceback" not in finished.stderr
    assert "meld: error" not in finished.stdout


@pytest.mark.heavy
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])  # Python's own setting: a container's, usually
def test_the_exit_status_is_right_even_if_stderr_fails(unbuffered: str) -> None:
    command = [sys.executable, "-m", "cli", "info", "no.h5"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        finished = subprocess.run(command, stdout=full, stderr=full, cwd=ROOT, env=environment)
    assert finished.returncode == 5


def test_a_reader_that_has_seen_enough_hears_no_complaint(features: Path) -> None:
    command = [sys.executable, "-m", "cli", "info", str(features / "dev.h5"), "--json"]
    read, write = os.pipe()
    os.close(read)
    try:
        finished = subprocess.run(
            command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
    finally:
        os.close(write)
    assert (finished.returncode, finished.stderr) == (1, "")


@pytest.mark.heavy
def test_a_closed_output_changes_no_status_and_no_message() -> None:
    closed = ["bash", "-c", 'exec "$@" >&-', "closed", sys.executable, "-m", "cli"]
    finished = subprocess.run([*closed, "info", "no.h5"], capture_output=True, text=True, cwd=ROOT)
    assert finished.returncode == 5
    assert finished.stderr == "meld: error: no.h5: no such file\n"


def test_training_writes_all_that_its_folder_promises(run: Path) -> None:
    for name in ("model.safetensors", "config.json", "history.jsonl", "metrics.json"):
        assert (run / name).stat().st_size > 0
    config = json.loads((run / "config.json").read_text())
    assert config["fingerprint"]
    assert len((run / "history.jsonl").read_text().splitlines()) == 2


def test_settings_come_from_a_file_and_the_command_line_wins(
    meld: Meld, features: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "train.toml"
    settings.write_text("seed = 7\n[fit]\nepochs = 3\n")
    finished = meld(
        *("train-fusion", "--features", features, "--out", tmp_path / "run"),
        *("--config", settings, "--epochs", 1, "--json"),
    )
    assert finished.status == 0, finished.err
    assert finished.json["epochs"] == 1
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["seed"] == 7


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("extract", "--split", "train", "--data", "nowhere"), 4, "nowhere: no such folder"),
        (("extract", "--split", "sideways"), 2, "sideways"),
        (("extract", "--split", "dev", "--modalities", "smell"), 2, "--modalities smell"),
        (("extract", "--split", "dev", "--weights", "audio=random"), 2, "--weights audio=random"),
        (("extract", "--split", "dev", "--config", "no.toml"), 2, "no.toml"),
        (
            ("extract", "--split", "dev", "--video", "foo"),
            2,
            "--video foo: unknown; known are r3d_18",
        ),
        (
            ("extract", "--split", "dev", "--audio", "foo"),
            2,
            "--audio foo: unknown; known are spec",
        ),
        (("info", "no.h5"), 5, "no.h5: no such file"),
        (("train-fusion", "--features", "nowhere"), 4, "meld extract --split train"),
        (("evaluate", "nowhere"), 4, "nowhere is no trained run (no such folder)"),
        (("compare", "nowhere", "nowhere"), 4, "nowhere is no trained run (no such folder)"),
        (("compare", "a", "b", "--samples", 3), 2, "samples must be in 100 to 100000, not 3"),
        (
            ("evaluate", "a", "--features", "b", "--data", "c"),
            2,
            "--data c: with --features the cl",
        ),
        (("evaluate", "x" * 300), 5, "xxx/config.json: File name too long"),
        (("evaluate", "README.md"), 4, "README.md is no trained run (a file, not a folder)"),
        (("extract", "--split", "dev", "--context", "all"), 2, "--context all: a number of"),
        (("extract", "--split", "dev", "--future"), 2, "ask for --context dialogue with it"),
        (("train-fusion", "--ensemble", "0"), 2, "ensemble: 1 to 100 models, not 0"),
        (("finetune", "--end-to-end", "--ema", "1.5"), 2, "ema must be in [0, 1)"),
        (("train-fusion", "--distil", "nowhere"), 4, "nowhere is no trained run"),
    ],
)
def test_a_mistake_gets_one_line_and_its_own_status(
    meld: Meld, arguments: tuple[str, ...], status: int, message: str
) -> None:
    finished = meld(*arguments)
    assert finished.status == status, finished.err
    assert message in finished.err
    assert "Traceback" not in finished.err


def test_an_unknown_setting_names_the_nearest(meld: Meld, tmp_path: Path) -> None:
    settings = tmp_path / "extract.toml"
    settings.write_text("num_frame = 8\n")
    finished = meld("extract", "--split", "dev", "--config", settings)
    assert finished.status == 2
    assert "did you mean num_frames?" in finished.err


@pytest.mark.parametrize(
    ("command", "settings", "message"),
    [
        (("train-fusion",), "fit = 3", "fit is a table of settings, not 3"),
        (("train-fusion", "--epochs", "2"), "fit = [1, 2]", "fit is a table of settings"),
        (("extract", "--split", "dev"), 'encoders = "minilm"', "encoders is a table of settings"),
    ],
)
def test_a_settings_table_that_is_none_is_named(
    meld: Meld, tmp_path: Path, command: tuple[str, ...], settings: str, message: str
) -> None:
    (tmp_path / "wrong.toml").write_text(settings)
    finished = meld(*command, "--config", tmp_path / "wrong.toml")
    assert finished.status == 2, finished.err
    assert message in finished.err
    assert "Traceback" not in finished.err


@pytest.mark.parametrize(
    ("command", "settings", "message"),
    [
        (("ablate",), "[model]\nfusion = 'late'", "model.fusion: an ablation trains several; name"),
        (
            ("finetune", "--end-to-end", "--resume", "--out", "runs/a"),
            "overwrite = true",
            "--resume goes on with the run in --out, --overwrite replaces it",
        ),
        (
            ("train-fusion", "--fusion", "early"),
            "[model]\nprojection = 64",
            "model.projection = 64: early fusion projects nothing; leave it out",
        ),
        (
            ("crossval", "--modalities", "text"),
            "[fit]\nmodality_dropout = 0.3",
            "fit.modality_dropout = 0.3: text is the only modality",
        ),
        (
            ("finetune", "--end-to-end", "--batch-size", "4"),
            "[tune]\nmicro_batch_size = 8",
            "micro_batch_size must be at most batch_size, the 4 rows of a step, not 8",
        ),
        (
            ("predict", "talk.mp4", "--text", "So kind!"),
            "[words.speech]\njoin_ms = 1000",
            "words.speech says how a file is heard, and --text says what is said in it",
        ),
        (
            ("predict", "talk.mp4", "--no-text"),
            "[words.speech.cutting]\npause_ms = 900",
            "words.speech.cutting.pause_ms = 900: with --no-text nothing is recognised",
        ),
        (
            ("ablate", "--fusion", "early"),
            "[model]\nprojection = 64",
            "model.projection = 64: early fusion projects nothing",
        ),
        (
            ("ablate", "--modalities", "audio"),
            "[fit]\nmodality_dropout = 0.3",
            "fit.modality_dropout = 0.3: audio is the only modality",
        ),
        (("train-fusion",), "overwrite = true", "--overwrite replaces the run in --out, and"),
        (
            ("finetune", "--end-to-end", "--overwrite"),
            "seed = 1",
            "--overwrite replaces the run in --out, and without --out",
        ),
        (
            ("download", "--from", "somewhere"),
            "[patience]\nattempts = 9",
            "patience is for servers, and with --from nothing is fetched",
        ),
    ],
)
def test_a_setting_that_would_not_count_is_refused(
    meld: Meld, tmp_path: Path, command: tuple[str, ...], settings: str, message: str
) -> None:
    (tmp_path / "settings.toml").write_text(settings)
    finished = meld(*command, "--config", tmp_path / "settings.toml")
    assert finished.status == 2, finished.err
    assert message in finished.err
    assert finished.err.count("\n") == 1


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 100_000, "0x", "\udcff"])
def test_settings_that_cannot_be_read_are_no_traceback(
    meld: Meld, tmp_path: Path, value: str
) -> None:
    settings = tmp_path / "wrong.toml"
    settings.write_text(f"seed = {value}", errors="surrogateescape")
    finished = meld("train-fusion", "--config", settings)
    assert finished.status == 2, finished.err
    assert f"{settings}: no valid TOML" in finished.err
    assert len(finished.err) < 1000


def test_missing_weights_are_named_with_the_ways_to_get_them(
    meld: Meld, corpus: Path, tmp_path: Path
) -> None:
    """A proxy where nothing listens stands for being without a network."""
    finished = meld(
        *("extract", "--split", "dev", "--data", corpus, "--features", tmp_path / "features"),
        *("--text", "minilm", "--weights-dir", tmp_path / "weights"),
        https_proxy="http://127.0.0.1:9",
    )
    assert finished.status == 6, finished.err
    assert "r3d_18-b3b3357e.pth" in finished.err
    assert "--weights video=random" in finished.err
    assert not (tmp_path / "features" / "dev.h5").exists()


def test_ablate_runs_on_the_small_corpus_and_crossval_says_what_it_lacks(
    meld: Meld, features: Path, tmp_path: Path
) -> None:
    quick = ("--features", features, "--seeds", 1, "--epochs", 2, "--json")
    crossed = meld("crossval", *quick, "--folds", 2, "--modalities", "text,audio")
    assert crossed.status == 4
    assert "fold 1 of 2 leaves one dialogue" in crossed.err
    crossed = meld("crossval", *quick, "--folds", 3, "--modalities", "text,audio")
    assert crossed.status == 2
    assert "--folds 3: there are 2 dialogues" in crossed.err
    ablated = meld(
        "ablate", *quick, "--fusion", "late,gated", "--modalities", "text", "--out", tmp_path / "a"
    )
    assert ablated.status == 0, ablated.err
    assert [row["fusion"] for row in ablated.json["rows"]] == ["late", "gated"]


def test_every_fusion_and_the_dialogue_are_options_of_training(
    meld: Meld, features: Path, tmp_path: Path
) -> None:
    options = ("--fusion", "gated", "--context", "dialogue", "--future", "--epochs", 1, "--json")
    run = tmp_path / "run"
    trained = meld("train-fusion", "--features", features, *options, "--out", run)
    assert trained.status == 0, trained.err
    model = json.loads((run / "config.json").read_text())["dims"]["model"]
    assert (model["fusion"], model["context"], model["future"]) == ("gated", "dialogue", True)
    measured = meld("evaluate", run, "--json")
    assert measured.status == 0, measured.err
    assert meld("train-fusion", "--features", features, "--future").status == 2
