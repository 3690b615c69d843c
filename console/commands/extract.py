"""`meld extract`: a corpus -> feature caches."""

from pathlib import Path
from typing import Annotated

import typer

from console.edge import EXIT_SOME_FAILED, reports_errors
from console.options import (
    AsJson,
    ClusterAddress,
    ConfigFile,
    Cores,
    Corpus,
    DeviceOption,
    Features,
    ModalityNames,
    PrecisionChoice,
    SplitChoice,
    TestClipsChoice,
    WeightsDir,
)
from console.progress import progress
from console.settings import read_settings
from pipeline.options import context_in, given, modalities_in, weights_in

EPILOG = (
    "Examples: `meld extract --split all --data data`   "
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
