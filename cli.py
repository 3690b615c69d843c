"""The `meld` command: options -> one frozen config -> one call -> printed result, exit status.

Only this file and console/ print, and nothing heavy is imported before a command runs:
`meld --help` must be instant. Defaults live in the configs; an option that was not given is not
passed on.
"""

import errno
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer
from typer.models import CommandInfo

from console.arguments import Command
from console.commands.config import app as config_commands
from console.commands.convert import EPILOG as CONVERT_EPILOG
from console.commands.convert import convert
from console.commands.export import EXPORT_EPILOG, VERIFY_EPILOG, export, verify
from console.commands.import_features import EPILOG as IMPORT_EPILOG
from console.commands.import_features import import_features
from console.commands.listen import EPILOG as LISTEN_EPILOG
from console.commands.listen import listen
from console.commands.serve import EPILOG as SERVE_EPILOG
from console.commands.serve import serve
from console.edge import needs_extra, reports_errors, tell
from console.options import (
    AsJson,
    ClusterAddress,
    ConfigFile,
    ContextOption,
    Cores,
    Corpus,
    DeviceOption,
    DevShare,
    EncoderOwner,
    Ensemble,
    EvaluationSplit,
    Features,
    FeaturesOfRun,
    FusionOption,
    FutureOption,
    GroupChoice,
    InputKindOption,
    MeasuredOn,
    MeasuredSplit,
    ModalityNames,
    MostEpochs,
    OverwriteRun,
    PrecisionChoice,
    PredictingModel,
    RuntimeOption,
    Seed,
    SplitChoice,
    Teacher,
    TestClipsChoice,
    TrackerOption,
    TrainedRun,
    WeightsDir,
)
from console.printing import print_json, say
from console.progress import byte_progress, progress
from console.settings import read_settings
from console.start import FIRST_STEPS, GROUPS
from pipeline.errors import MeldError, StorageError, UsageError
from pipeline.options import (
    context_in,
    given,
    learning_rates_in,
    modalities_in,
    splits_in,
    weights_in,
)

if TYPE_CHECKING:
    from fusion.finetuning.loop import StepResult

EXIT_SOME_FAILED = 3
# A full disk behind `meld ... > file`, or a reader that went away.
_STDOUT_FAILS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE)

app = typer.Typer(
    name="meld",
    epilog="`meld COMMAND --help` has examples; `meld config keys COMMAND` lists all settings; "
    "`meld --install-completion` lets the shell complete commands and options.",
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the console script."""
    # `meld ... >&-`: nobody wants it, and no file that is opened later shall get what is printed.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    if isinstance(sys.stdout, io.TextIOWrapper):  # paths may have bytes that are no characters
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            app(prog_name="meld")
        finally:
            sys.stdout.flush()  # at the very end, a failure would have no status of its own
    except OSError as error:
        if error.filename is not None or error.errno not in _STDOUT_FAILS:
            raise
        _drop_what_cannot_be_printed(sys.stdout)
        if isinstance(error, BrokenPipeError):  # `meld ... | head` has seen enough
            sys.exit(1)
        tell(f"meld: error: the output cannot be written: {error.strerror}")
        sys.exit(StorageError.exit_status)
    finally:
        try:
            sys.stderr.flush()  # `tell` leaves in its buffer what it could not write
        except OSError:
            _drop_what_cannot_be_printed(sys.stderr)


def _drop_what_cannot_be_printed(stream: TextIO) -> None:
    """Otherwise Python tries to write it once more when it ends, and ends with status 120."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _default_corpus() -> Path | None:
    data = Path("data")
    return data if data.is_dir() else None


# ------------------------------------------------------------------------------------ commands


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the versions of meld and of the libraries that decide values."
        ),
    ] = False,
) -> None:
    """Recognise emotions in videos, and train the models that do, on MELD or on your own clips."""
    if version:
        from console.show.version import show_version

        show_version()
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(FIRST_STEPS)


@app.command(epilog="Example: `meld sample --out data --dialogues 80 --seed 1`")
@reports_errors
def sample(
    out: Annotated[Path, typer.Option(help="Folder to write the corpus to.")],
    dialogues: Annotated[
        int | None, typer.Option(help="Number of dialogues, of 3 to 8 clips each.  [default: 78]")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Random seed; the same seed gives the same bytes.  [default: 0]"),
    ] = None,
    corrupt: Annotated[
        bool, typer.Option("--corrupt", help="Plant the kinds of defects that the real corpus has.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(help="Number of processes.  [default: one per core]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Generate a small corpus in MELD's format: spoken sentences and drawn faces, H.264 and AAC."""
    from pipeline.settings import build_config

    with needs_extra("sample"):
        from console.show.sample import show_sample
        from pipeline.sample.corpus import SampleConfig, make_sample

    options = given(out=out, dialogues=dialogues, seed=seed, corrupt=corrupt, workers=workers)
    config = build_config(SampleConfig, options)
    with progress("generating clips") as advance:
        result = make_sample(config, advance)
    show_sample(result, as_json)


@app.command(
    epilog="Examples: `meld download`   `meld download --from MELD.Raw.tar.gz`   "
    "`meld download --from unpacked/MELD.Raw` (used in place)   `meld download --splits dev,test`"
)
@reports_errors
def download(
    out: Annotated[
        Path | None, typer.Option(help="Folder to write CSVs and clips to.  [default: data]")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="Another URL of MELD.Raw.tar.gz.  [default: the public ones]"),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Use a copy instead of downloading: the archive, or a folder that holds it or "
            "its unpacked content (Kaggle's copy too). An unpacked folder is linked, not copied.",
        ),
    ] = None,
    splits: Annotated[
        str | None,
        typer.Option(help="Comma-separated subset of train,dev,test.  [default: all three]"),
    ] = None,
    keep_archive: Annotated[
        bool, typer.Option("--keep-archive", help="Keep the downloaded archive in --out.")
    ] = False,
    sha256: Annotated[
        str | None,
        typer.Option(help="SHA-256 of the archive, if it is not the published one."),
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Get MELD's clips and annotations: download, verify and unpack 10.9 GB, or use a copy.

    A stopped download is resumed by the same command. It needs some 23 GB of disk while it runs and
    12 GB afterwards.
    """
    options = given(
        out=out,
        url=url,
        source=source,
        splits=splits_in(splits),
        keep_archive=keep_archive,
        sha256=sha256,
    )
    said = read_settings(config, options)

    from console.show.download import show_download
    from pipeline.download.config import DownloadConfig
    from pipeline.download.download import download as run_download

    download_config = said.build(DownloadConfig)
    with byte_progress() as advance:
        report = run_download(download_config, advance)
    show_download(report, as_json)


@app.command(
    epilog="Examples: `meld extract --split all --data data`   "
    "`meld extract --split all --modalities text --text minilm`   "
    "`meld extract --split train --weights video=random` (untrained features, marked as such)   "
    "`meld extract --split all --encoders runs/tuned --features features-tuned`"
)
@reports_errors
def extract(
    split: Annotated[
        SplitChoice, typer.Option(help="Split to extract; all takes every split that has a CSV.")
    ],
    data: Corpus = None,
    features: Features = None,
    modalities: ModalityNames = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="Text encoder: a Hugging Face name, a folder, or minilm (needs no download); or "
            "word vectors: glove (needs no download), glove:FILE, word2vec:FILE.  "
            "[default: bert-base-uncased]"
        ),
    ] = None,
    video: Annotated[
        str | None,
        typer.Option(
            help="r3d_18, mc3_18 or r2plus1d_18; resnet18, resnet50, vgg16 or another image net of "
            "torchvision's, frame by frame; or faces: what the largest face of each frame "
            "expresses (needs no download).  [default: r3d_18]"
        ),
    ] = None,
    audio: Annotated[
        str | None,
        typer.Option(
            help="spectrogram; prosody: pitch, loudness, rhythm and voice quality; or both, as "
            "spectrogram,prosody; or a model of speech: wav2vec2-base, hubert-base, wavlm-base, "
            "whisper-tiny.en, another Hugging Face name, a folder.  "
            "[default: spectrogram]"
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="pretrained, random, or per modality: video=random.  [default: pretrained]"
        ),
    ] = None,
    weights_dir: WeightsDir = None,
    context: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|dialogue",
            help="Number of previous utterances of the dialogue, with their speakers, that the "
            "text encoder reads before each utterance; or dialogue: it reads each dialogue as a "
            "whole, so that every utterance is read after those before it.  [default: 0]",
        ),
    ] = None,
    future: Annotated[
        bool,
        typer.Option(
            "--future",
            help="With --context dialogue: each utterance is read with those after it as well.",
        ),
    ] = False,
    num_frames: Annotated[
        int | None,
        typer.Option(help="Number of frames of a clip that the video encoder sees.  [default: 16]"),
    ] = None,
    test_clips: Annotated[
        TestClipsChoice | None,
        typer.Option(
            help="132 of MELD's test clips exist twice: fixed reads the corrected cuts, legacy the "
            "plain names that most papers used.  [default: fixed]"
        ),
    ] = None,
    encoders: Annotated[
        Path | None,
        typer.Option(
            help="Fine-tuned run whose encoders, precision and decode settings are used; settings "
            "that contradict them are refused."
        ),
    ] = None,
    device: DeviceOption = None,
    precision: Annotated[
        PrecisionChoice | None,
        typer.Option(
            help="Precision of the encoders; auto uses bfloat16 if the hardware supports it.  "
            "[default: auto]"
        ),
    ] = None,
    workers: Cores = None,
    address: ClusterAddress = None,
    config: ConfigFile = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check everything and print what would be done, without doing it."
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Extract every row again and replace the caches."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run the encoders once over a split and cache raw and 128-d embeddings.

    A killed extraction is resumed by the same command. Exit status 3: finished, but some clips had
    failures (`meld info CACHE --failures` lists them).
    """
    chosen = given(
        text=text,
        video=video,
        audio=audio,
        context=context_in(context),
        future=future,
        weights_dir=weights_dir,
        run=encoders,
    )
    options = given(
        data=data,
        features=features,
        splits=None if split is SplitChoice.all else (split.value,),
        modalities=modalities_in(modalities),
        device=device,
        precision=precision,
        num_frames=num_frames,
        test_clips=test_clips,
        workers=workers,
        address=address,
        overwrite=overwrite,
    )
    said = read_settings(
        config, options, always_given=("splits",), encoders=chosen | weights_in(weights)
    )

    from console.show.extraction import show_extraction, show_plan
    from pipeline.extract.extract import ExtractConfig, plan
    from pipeline.extract.extract import extract as run_extract

    extract_config = said.build(ExtractConfig)
    if dry_run:
        show_plan(plan(extract_config), as_json)
        return
    with progress("encoding clips", note="failures") as advance:
        report = run_extract(extract_config, advance)
    show_extraction(report, as_json)
    if report.num_failures:
        raise typer.Exit(EXIT_SOME_FAILED)


@app.command(
    epilog="Examples: `meld doctor --data data`   `meld doctor --deep --html checked.html`"
)
@reports_errors
def doctor(
    data: Corpus = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Decode every clip instead of reading headers only.")
    ] = False,
    test_clips: Annotated[
        TestClipsChoice | None,
        typer.Option(
            help="132 of MELD's test clips exist twice: fixed checks the corrected cuts, legacy "
            "the plain names.  [default: fixed]"
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="HTML file to write.  [default: doctor.html]")
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            help="Folder where caches would be written; its free disk space is checked.  "
            "[default: features]"
        ),
    ] = None,
    weights_dir: WeightsDir = None,
    workers: Cores = None,
    as_json: AsJson = False,
) -> None:
    """Check a corpus and this machine: what is missing, broken or mis-cut, and is it known?

    Exit status 0: no defects, or only those that are published about MELD. 3: there are new ones.
    It writes a page with frames of the clips that have findings, changes nothing else and downloads
    nothing.
    """
    from console.show.doctor import show_checkup, show_machine
    from pipeline.doctor.examine import DoctorConfig, examine, look_around
    from pipeline.settings import build_config

    options = given(
        data=data,
        deep=deep,
        test_clips=test_clips,
        html=html,
        features=features,
        weights_dir=weights_dir,
        workers=workers,
    )
    config = build_config(DoctorConfig, options)
    machine = look_around(config)
    if not as_json:
        show_machine(machine)
    try:
        with progress("checking clips", note="with findings") as advance:
            report = examine(config, machine, advance)
    except MeldError as error:
        if as_json:  # the machine was checked
            print_json({"machine": machine.to_dict(), "error": str(error)})
        raise
    show_checkup(report, as_json)
    if not report.is_healthy:
        raise typer.Exit(EXIT_SOME_FAILED)


@app.command(
    epilog="Examples: `meld info features/train.h5 --verify`   "
    "`meld info features/train.h5 --failures`   `meld info runs/first`"
)
@reports_errors
def info(
    file: Annotated[Path, typer.Argument(help="A feature cache, or the folder of a trained run.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Verify the checksum of every chunk.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Corpus whose clips are compared with the cache by name, size and time.  "
            "[default: data, if it exists]"
        ),
    ] = None,
    failures: Annotated[
        bool, typer.Option("--failures", help="List every failure with its clip and reason.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a cache holds and which rows are stale, or what a run was trained with.

    Of a cache: rows, presence, failures, recipe and labels. Of a run: its settings, its best epoch,
    its evaluations and the commands that make it again.
    """
    if file.is_dir():
        if (file / "train.h5").is_file():
            raise UsageError(f"{file}: a folder of caches; name one: {file / 'train.h5'}")
        if verify or failures or data is not None:
            raise UsageError(f"{file} is a folder; --verify, --failures and --data need a cache")
        from console.show.run import show_run
        from fusion.reporting.run_info import describe_run

        show_run(describe_run(file), as_json)
        return
    from console.show.info import show_info
    from pipeline.cache.info import describe
    from pipeline.errors import CacheCorrupt

    described = describe(file, check=verify, data=data or _default_corpus())
    if data is not None and described.stale is None:
        raise UsageError(
            f"--data {data}: {file} was made without reading clips, so there are none to compare; "
            "leave the option out"
        )
    show_info(described, as_json, failures=failures)
    if described.damaged:
        raise CacheCorrupt(
            f"{file}: checksums do not hold in {', '.join(described.damaged)}; "
            "delete the file and extract again"
        )


@app.command(
    "train-fusion",
    epilog="Examples: `meld train-fusion`   "
    "`meld train-fusion --modalities text --out runs/text --seed 1`   "
    "`meld train-fusion --features features-tuned --start runs/tuned`",
)
@reports_errors
def train_fusion(
    features: Features = None,
    modalities: ModalityNames = None,
    input_kind: InputKindOption = None,
    fusion: FusionOption = None,
    context: ContextOption = None,
    future: FutureOption = False,
    start: Annotated[
        Path | None,
        typer.Option(
            help="Warm start: train on from this run, on features made with the same recipe. The "
            "run is kept as it is if no epoch is better on dev."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run.  [default: a new one under runs/]")
    ] = None,
    seed: Seed = None,
    ensemble: Ensemble = None,
    distil: Teacher = None,
    epochs: MostEpochs = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Batch size in rows.  [default: 256, or less if train has few rows]"),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Peak learning rate of AdamW.  [default: 0.001; 0.0003 with --start]"),
    ] = None,
    dev_share: DevShare = None,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit",
            help="Without a dev cache: train again on all of train, the dialogues that were held "
            "out too, for all epochs. Scores on dev stay those of the training without them.",
        ),
    ] = False,
    device: DeviceOption = None,
    tracker: TrackerOption = None,
    config: ConfigFile = None,
    overwrite: OverwriteRun = False,
    as_json: AsJson = False,
) -> None:
    """Train a fusion model on cached features; the epoch is chosen on dev.

    Without a dev cache, a share of train's dialogues is held out as dev. They are the same for
    every seed, and the run records them.
    """
    options = given(
        features=features,
        modalities=modalities_in(modalities),
        input=input_kind,
        start=start,
        out=out,
        seed=seed,
        ensemble=ensemble,
        distil=distil,
        dev_share=dev_share,
        refit=refit,
        device=device,
        tracker=tracker,
        overwrite=overwrite,
    )
    said = read_settings(
        config,
        options,
        model=given(fusion=fusion, context=context, future=future),
        fit=given(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate),
    )

    from console.show.training import show_training
    from fusion.training.train import TrainConfig
    from fusion.training.train import train_fusion as run_training

    train_config = said.build(TrainConfig)
    with progress("training") as advance:
        result = run_training(
            train_config, lambda epoch: advance(epoch.epoch, train_config.fit.epochs)
        )
    show_training(result, as_json)


@app.command(
    epilog="Examples: `meld finetune --end-to-end --run runs/first`   "
    "`meld finetune --end-to-end --modalities text --epochs 3 --out runs/tuned`   "
    "`meld finetune --end-to-end --resume --out runs/tuned`"
)
@reports_errors
def finetune(
    end_to_end: Annotated[
        bool,
        typer.Option(
            "--end-to-end", help="Required: the encoders and the fusion model are trained together."
        ),
    ] = False,
    run: Annotated[
        Path | None,
        typer.Option(help="Trained run to start from.  [default: train one first]"),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with the CSVs and clips.  [default: data]")
    ] = None,
    features: FeaturesOfRun = None,
    modalities: ModalityNames = None,
    unfreeze: Annotated[
        str | None,
        typer.Option(
            help="Modalities whose encoders are trained, comma-separated.  "
            "[default: all that can be]"
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Maximum number of epochs.  [default: 3]")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Batch size in rows, over all workers.  [default: 32]"),
    ] = None,
    learning_rate: Annotated[
        str | None,
        typer.Option(
            help="Peak learning rates of text, video, audio and heads, such as "
            "text=1e-5,heads=1e-4.  [default: text=3e-05,video=0.0001,audio=0.001,heads=0.0003]"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the new run.  [default: a new one under runs/]")
    ] = None,
    seed: Seed = None,
    ensemble: Ensemble = None,
    distil: Teacher = None,
    ema: Annotated[
        float | None,
        typer.Option(
            help="Decay of an average of the weights over steps (EMA), such as 0.99, which the run "
            "then gets; 0 takes the weights as they are.  [default: 0.0]"
        ),
    ] = None,
    dev_share: DevShare = None,
    device: DeviceOption = None,
    precision: Annotated[
        PrecisionChoice | None,
        typer.Option(
            help="Precision that the encoders compute in; weights stay float32.  [default: auto]"
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Number of Ray Train workers, with one GPU each if there are GPUs.  [default: 1]"
        ),
    ] = None,
    address: ClusterAddress = None,
    weights_dir: WeightsDir = None,
    encoders: Annotated[
        Path | None,
        typer.Option(
            help="Fine-tuned run whose encoders made the features.  [default: the one recorded in "
            "them]"
        ),
    ] = None,
    config: ConfigFile = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the unfinished run in --out.")
    ] = False,
    overwrite: OverwriteRun = False,
    as_json: AsJson = False,
) -> None:
    """Unfreeze the encoders of a trained run and train encoders and fusion together on raw clips.

    Before step 1 the logits on raw input are compared with those on the cache. The new run owns
    its encoders: `meld evaluate` measures it on raw clips, `meld extract --encoders` makes
    features with them. A killed fine-tuning is resumed with --resume and ends with the same
    weights.
    """
    if not end_to_end:
        raise UsageError("finetune trains encoders and fusion together: say --end-to-end")
    options = given(
        run=run,
        data=data,
        features=features,
        modalities=modalities_in(modalities),
        unfreeze=modalities_in(unfreeze, "--unfreeze"),
        out=out,
        seed=seed,
        ensemble=ensemble,
        distil=distil,
        dev_share=dev_share,
        device=device,
        precision=precision,
        workers=workers,
        address=address,
        weights_dir=weights_dir,
        encoders=encoders,
        resume=resume,
        overwrite=overwrite,
    )
    tune = given(
        epochs=epochs,
        batch_size=batch_size,
        learning_rates=learning_rates_in(learning_rate),
        ema=ema,
    )
    said = read_settings(config, options, tune=tune)

    from console.show.training import show_finetuning
    from fusion.finetuning.finetune import finetune as run_finetuning
    from fusion.finetuning.job import FinetuneConfig

    finetune_config = said.build(FinetuneConfig)
    with progress("clips", note="failures") as advance:

        def follow(step: "StepResult") -> None:
            told = f"{step.rows_per_s:.0f} a second, epoch {step.epoch}, loss {step.loss:.3f}"
            advance(step.rows, step.rows_in_all, told=told)

        result = run_finetuning(finetune_config, say, follow, advance)
    show_finetuning(result, as_json)


@app.command(
    epilog="Examples: `meld evaluate runs/text --split test`   "
    "`meld evaluate runs/text --split dev --errors`   "
    "`meld evaluate runs/tuned` (fine-tuned: measured on raw clips)"
)
@reports_errors
def evaluate(
    run: TrainedRun,
    split: MeasuredOn = EvaluationSplit.test,
    features: FeaturesOfRun = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Corpus to measure a fine-tuned run on.  [default: the one it was fine-tuned on]"
        ),
    ] = None,
    errors: Annotated[
        bool,
        typer.Option("--errors", help="Show an error analysis as well (--json always has it)."),
    ] = False,
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="File to write the predictions of every row to; it ends in .csv or .parquet."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a run on a split beside the majority baseline; write JSON and plots into the run.

    A fine-tuned run is measured on raw clips, with its own encoders.
    """
    from console.show.evaluation import show_evaluation
    from fusion.evaluation.evaluate import EvaluateConfig
    from fusion.evaluation.evaluate import evaluate as run_evaluation

    config = EvaluateConfig(
        run=run, split=split.value, features=features, data=data, predictions=predictions
    )
    with progress("encoding clips", note="failures") as advance:
        report = run_evaluation(config, advance)
    show_evaluation(report, run, as_json, errors=errors)
    if predictions is not None:
        say(f"written: {predictions}")


@app.command(
    epilog="Examples: `meld predict talk.mp4`   `meld predict talk.mp4 --subtitles talk.srt "
    "--format json,csv,vtt --out results`   `meld predict clip.mov --text 'So kind of you!' "
    "--model runs/all --json`"
)
@reports_errors
def predict(
    media: Annotated[list[Path], typer.Argument(help="Media files, and folders of them.")],
    model: PredictingModel = None,
    subtitles: Annotated[
        Path | None,
        typer.Option(
            help="Subtitle file: .srt, .vtt or .ass.  [default: one beside the media file with "
            "its name, else a subtitle track in it]"
        ),
    ] = None,
    transcript: Annotated[
        Path | None,
        typer.Option(help="CSV with Utterance, StartTime and EndTime, or lines with times."),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(help="The words of the whole file, which is then one utterance."),
    ] = None,
    asr: Annotated[
        str | None,
        typer.Option(
            help="Recognise the speech with this model: tiny.en (English), or the folder of a "
            "Whisper model in CTranslate2 format.  [default: tiny.en, if no words are given or "
            "found]"
        ),
    ] = None,
    no_text: Annotated[
        bool, typer.Option("--no-text", help="Give the model video and audio only, without words.")
    ] = False,
    start: Annotated[float | None, typer.Option(help="Start time in the file, in seconds.")] = None,
    end: Annotated[float | None, typer.Option(help="End time in the file, in seconds.")] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Formats to write, comma-separated: json, csv, srt, vtt, html.  [default: json]",
        ),
    ] = None,
    embed: Annotated[
        bool,
        typer.Option(
            "--embed",
            help="Embed the video in the html page, up to 200 MiB.  [default: the page plays the "
            "file from where it is]",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write FILE.meld.FORMAT to; - is stdout, for one file and one format.  "
            "[default: predictions]"
        ),
    ] = None,
    weights_dir: WeightsDir = None,
    encoders: EncoderOwner = None,
    device: DeviceOption = None,
    precision: Annotated[
        PrecisionChoice | None,
        typer.Option(
            help="Precision that the encoders compute in; auto is that of the training, and only "
            "that gives the same probabilities as meld evaluate.  [default: auto]"
        ),
    ] = None,
    runtime: RuntimeOption = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Number of CPU cores, and of files predicted in parallel, if there are 32 files "
            "or more; fewer are predicted one after another.  [default: all cores]"
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Existing Ray cluster to predict on, for any number of files: auto or host:port. "
            " [default: this machine]"
        ),
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Recognise emotions in media files, utterance by utterance: seven emotions, three sentiments.

    A killed prediction is resumed by the same command and ends with the same numbers.
    """
    options = given(
        media=tuple(media),
        model=model,
        out=out,
        formats=None if formats is None else tuple(filter(None, formats.split(","))),
        embed=embed,
        weights_dir=weights_dir,
        encoders=encoders,
        device=device,
        precision=precision,
        runtime=runtime,
        workers=workers,
        address=address,
    )
    words = given(
        subtitles=subtitles,
        transcript=transcript,
        text=text,
        asr=asr,
        no_text=no_text,
        start_s=start,
        end_s=end,
    )
    from console.show.prediction import show_predictions, tell_failures
    from fusion.prediction.predict_files import PredictConfig, predict_files

    said = read_settings(config, options, always_given=("media",), words=words)
    predict_config = said.build(PredictConfig)
    with progress("predicting") as advance:
        report = predict_files(
            predict_config,
            on_progress=lambda path, done_ms, total_ms: advance(
                done_ms // 1000, total_ms // 1000, told=f"seconds of {path.name}"
            ),
            on_files=lambda done, total: advance(done, total, told="files"),
        )
    show_predictions(report, predict_config, as_json)
    tell_failures(report)
    if report.num_failed:
        raise typer.Exit(EXIT_SOME_FAILED)


@app.command(
    epilog="Examples: `meld compare runs/text runs/all`   "
    "`meld compare runs/first runs/context --split dev --features-b features-context`"
)
@reports_errors
def compare(
    run_a: TrainedRun,
    run_b: Annotated[
        Path, typer.Argument(help="Folder of another trained run, compared with the first.")
    ],
    split: MeasuredOn = EvaluationSplit.test,
    features_a: Annotated[
        Path | None, typer.Option(help="Caches to measure A on.  [default: the run's own]")
    ] = None,
    features_b: Annotated[
        Path | None, typer.Option(help="Caches to measure B on.  [default: the run's own]")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Number of bootstrap samples.  [default: 2000]")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed of the bootstrap.  [default: 0]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two runs with a paired bootstrap over the dialogues of a split.

    The runs must be measured on the same rows; all else may differ. On test, this counts as a test
    evaluation of both.
    """
    from console.show.comparison import show_comparison
    from fusion.experiments.compare import CompareConfig
    from fusion.experiments.compare import compare as run_comparison
    from pipeline.settings import build_config

    options = given(
        run_a=run_a,
        run_b=run_b,
        split=split,
        features_a=features_a,
        features_b=features_b,
        samples=samples,
        seed=seed,
    )
    config = build_config(CompareConfig, options)
    with progress("encoding clips", note="failures") as advance:
        comparison = run_comparison(config, advance)
    show_comparison(comparison, as_json)


@app.command(
    epilog="Examples: `meld report runs/first`   "
    "`meld report runs/first runs/second --split dev --data data --out compared.html`"
)
@reports_errors
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of trained runs.")],
    split: MeasuredOn = EvaluationSplit.test,
    out: Annotated[
        Path | None, typer.Option(help="HTML file to write.  [default: report.html]")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Corpus folder, for a frame of each clip that the page shows; fine-tuned runs "
            "are measured on it."
        ),
    ] = None,
    ablation: Annotated[
        Path | None,
        typer.Option(help="ablation.json of meld ablate, to show as a table.", dir_okay=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure runs and write one self-contained HTML page about them."""
    from console.show.page import show_page
    from fusion.reporting.html import HtmlReportConfig, write_html_report
    from pipeline.settings import build_config

    options = given(runs=tuple(runs), split=split, out=out, data=data, ablation=ablation)
    config = build_config(HtmlReportConfig, options)
    with progress("measuring", note="failures") as advance:
        reports = write_html_report(config, advance)
    show_page(reports, config, as_json)


@app.command(
    epilog="Examples: `meld crossval`   "
    "`meld crossval --modalities text --context dialogue --seeds 5 --out crossval.json`   "
    "`meld crossval --group speaker --folds 10`"
)
@reports_errors
def crossval(
    features: Features = None,
    folds: Annotated[
        int | None,
        typer.Option(
            help="Number of folds; as many as there are groups is leave-one-out.  [default: 5]"
        ),
    ] = None,
    group: Annotated[
        GroupChoice | None,
        typer.Option(
            help="Group that stays in one fold: dialogue or speaker.  [default: dialogue]"
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Number of seeds, each trained on every fold.  [default: 5]")
    ] = None,
    modalities: ModalityNames = None,
    input_kind: InputKindOption = None,
    fusion: FusionOption = None,
    context: ContextOption = None,
    future: FutureOption = False,
    seed: Annotated[
        int | None, typer.Option(help="Random seed of the folds.  [default: 0]")
    ] = None,
    epochs: MostEpochs = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.  [default: none]")] = None,
    device: DeviceOption = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Cross-validate on train and, if it exists, dev: folds x seeds, trained as one batched model.

    Every row is predicted by models that were trained without its dialogue or, with --group
    speaker, without what its speaker says. Test is not read.
    """
    options = given(
        features=features,
        folds=folds,
        group=group,
        seeds=seeds,
        modalities=modalities_in(modalities),
        input=input_kind,
        seed=seed,
        out=out,
        device=device,
    )
    said = read_settings(
        config,
        options,
        model=given(fusion=fusion, context=context, future=future),
        fit=given(epochs=epochs),
    )

    from console.show.crossval import show_crossval
    from fusion.experiments.crossval import CrossvalConfig
    from fusion.experiments.crossval import crossval as run_crossval

    crossval_config = said.build(CrossvalConfig)
    with progress("epochs") as advance:
        report = run_crossval(crossval_config, advance)
    show_crossval(report, out, as_json)


@app.command(
    epilog="Examples: `meld ablate --out runs/ablation`   "
    "`meld ablate --fusion late,gated --seeds 3`   "
    "`meld report RUN --ablation runs/ablation/ablation.json`"
)
@reports_errors
def ablate(
    features: Features = None,
    modalities: ModalityNames = None,
    fusion: Annotated[
        str | None, typer.Option(help="Comma-separated fusion types.  [default: all five]")
    ] = None,
    context: ContextOption = None,
    future: FutureOption = False,
    input_kind: InputKindOption = None,
    split: Annotated[
        MeasuredSplit | None,
        typer.Option(
            help="Split to measure on; test counts as one test evaluation.  [default: dev]"
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Number of seeds per cell of the table.  [default: 5]")
    ] = None,
    epochs: MostEpochs = None,
    dev_share: DevShare = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write the results to.  [default: runs/ablation]")
    ] = None,
    device: DeviceOption = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Train every subset of modalities with every fusion type: one table and one plot.

    A stopped ablation is resumed by the same command.
    """
    names = None if fusion is None else tuple(part.strip() for part in fusion.split(","))
    options = given(
        features=features,
        modalities=modalities_in(modalities),
        fusions=names,
        input=input_kind,
        split=split,
        seeds=seeds,
        dev_share=dev_share,
        out=out,
        device=device,
    )
    said = read_settings(
        config,
        options,
        refused=("model.fusion",),
        model=given(context=context, future=future),
        fit=given(epochs=epochs),
    )

    from console.show.ablation import show_ablation
    from fusion.experiments.ablation import AblateConfig
    from fusion.experiments.ablation import ablate as run_ablation

    ablate_config = said.build(AblateConfig)
    with progress("cells") as advance:
        result = run_ablation(ablate_config, advance)
    show_ablation(result, as_json)


@app.command(
    epilog="Examples: `meld search --modalities text --trials 27`   "
    "`meld train-fusion --config runs/search/best.toml`"
)
@reports_errors
def search(
    features: Features = None,
    modalities: ModalityNames = None,
    input_kind: InputKindOption = None,
    trials: Annotated[
        int | None,
        typer.Option(help="Number of settings to draw, the defaults among them.  [default: 27]"),
    ] = None,
    fixed: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated settings that keep their values, such as model.fusion; so do "
            "those in --config that differ from the defaults."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed of what is drawn.  [default: 0]")
    ] = None,
    dev_share: DevShare = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the search.  [default: runs/search]")
    ] = None,
    device: DeviceOption = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Search settings of train-fusion on dev: random draws, of which the best third goes on with
    three times the seeds, and so on. Test is not read.

    A stopped search is resumed by the same command. It ends in a TOML file for `meld train-fusion
    --config` and in a page that shows what mattered.
    """
    options = given(
        features=features,
        modalities=modalities_in(modalities),
        input=input_kind,
        trials=trials,
        fixed=None if fixed is None else tuple(part.strip() for part in fixed.split(",")),
        seed=seed,
        dev_share=dev_share,
        out=out,
        device=device,
    )
    said = read_settings(config, options)

    from console.show.search import show_search
    from fusion.experiments.search import SearchConfig
    from fusion.experiments.search import search as run_search

    search_config = said.build(SearchConfig)
    with progress("trainings") as advance:
        report = run_search(
            search_config,
            lambda done, total, best: advance(
                done, total, told="" if best is None else f"best so far {best:.4f}"
            ),
        )
    show_search(report, as_json)


@app.command(epilog="Example: `meld demo --out demo`")
@reports_errors
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo writes.")] = Path(
        "demo"
    ),
    seed: Seed = None,
    dialogues: Annotated[
        int | None, typer.Option(help="Number of dialogues in the generated corpus.  [default: 44]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the whole pipeline on a generated corpus and show what fusion gains.

    Nothing is downloaded: text is encoded by the bundled encoder, video with random weights, which
    are marked in every output.
    """
    from pipeline.settings import build_config

    with needs_extra("train,sample,minilm"):
        from console.show.demo import show_demo
        from fusion.experiments.demo import DemoConfig, run_demo

    config = build_config(DemoConfig, given(out=out, seed=seed, dialogues=dialogues))
    with progress("demo") as advance:
        report = run_demo(config, say, advance)
    show_demo(report, as_json)


def _name(command: CommandInfo) -> str:
    return command.name or str(getattr(command.callback, "__name__", ""))


_GROUP_OF = {name: title for title, names in GROUPS.items() for name in names}
app.command(epilog=CONVERT_EPILOG)(convert)
app.command("import", epilog=IMPORT_EPILOG)(import_features)
app.command(epilog=SERVE_EPILOG)(serve)
app.command(epilog=LISTEN_EPILOG)(listen)
app.command(epilog=EXPORT_EPILOG)(export)
app.command(epilog=VERIFY_EPILOG)(verify)
app.add_typer(config_commands, rich_help_panel=_GROUP_OF["config"])
for each in app.registered_commands:
    each.cls = Command
    each.rich_help_panel = _GROUP_OF.get(_name(each))
app.registered_commands.sort(key=lambda each: [*_GROUP_OF].index(_name(each)))

if __name__ == "__main__":
    main()
