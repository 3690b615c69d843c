"""`meld predict`: media files -> emotions, utterance by utterance."""

from pathlib import Path
from typing import Annotated

import typer

from console.edge import EXIT_SOME_FAILED, reports_errors
from console.options import (
    AsJson,
    ConfigFile,
    DeviceOption,
    EncoderOwner,
    PrecisionChoice,
    PredictingModel,
    RuntimeOption,
    WeightsDir,
)
from console.progress import progress
from console.settings import read_settings
from pipeline.options import given

EPILOG = (
    "Examples: `meld predict talk.mp4`   `meld predict talk.mp4 --subtitles talk.srt "
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
