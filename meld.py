"""`import meld`: what the commands compute, as functions.

    import meld

    meld.extract("all", data="data", text="minilm", weights="video=random")
    trained = meld.train_fusion(modalities=("text", "audio"), out="runs/first")
    report = meld.evaluate(trained.run, "test")
    print(report.emotion.model.weighted_f1, report.emotion.weighted_f1_interval)

Keyword arguments have the names of the command's options, with `_` for `-`, and the command's
defaults. `config` takes the path of a settings file, or a mapping such as `{"fit":
{"learning_rate": 3e-4}}`; arguments override it.

Every error is a `MeldError`. Its subclasses tell a wrong argument (`UsageError`), bad input
(`InputError`), a failed read or write (`StorageError`) and things that do not match
(`MismatchError`).

Importing this module imports nothing heavy, and a part that is not installed is a `UsageError`,
which names the command to install it. Extraction starts Ray unless it runs in the process
already; a caller's Ray is used and left running.
"""

import functools
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

from pipeline.errors import (
    AnnotationError,
    CacheBusy,
    CacheCorrupt,
    InputError,
    MeldError,
    MismatchError,
    ParityError,
    RecipeMismatch,
    StorageError,
    UsageError,
    WeightsMissing,
)
from pipeline.options import (
    AnyPath,
    given,
    learning_rates_in,
    merge_with_file,
    modalities_in,
    weights_in,
)
from pipeline.python_messages import errors_in_python
from pipeline.settings import build_config
from pipeline.system.extras import needs_extra
from pipeline.system.one_line import one_line
from pipeline.system.threads import ROUNDS_BESIDE_A_DECODER, wait_briefly

if TYPE_CHECKING:
    import datasets

    from fusion.data.dataset import CacheDataset
    from fusion.evaluation.report import EvalReport
    from fusion.export.export import ExportResult
    from fusion.export.golden import Verification
    from fusion.finetuning.finetune import FinetuneResult
    from fusion.finetuning.loop import StepResult
    from fusion.inference.media import PredictedUtterance
    from fusion.inference.predict_media import PreparedMedia
    from fusion.inference.timeline import Timeline
    from fusion.model.dims import FusionType, InputKind
    from fusion.training.history import EpochResult
    from fusion.training.train import TrainResult
    from pipeline.cache.format import FeatureCache, Want
    from pipeline.exchange.convert import ConvertReport
    from pipeline.extract.extract import ExtractReport
    from pipeline.importing.report import ImportReport
    from pipeline.schema import Modality, Split

__all__ = [
    "AnnotationError",
    "CacheBusy",
    "CacheCorrupt",
    "InputError",
    "MeldError",
    "MismatchError",
    "Model",
    "ParityError",
    "RecipeMismatch",
    "StorageError",
    "UsageError",
    "WeightsMissing",
    "convert",
    "evaluate",
    "export",
    "extract",
    "finetune",
    "hf_dataset",
    "import_features",
    "load",
    "read_cache",
    "torch_dataset",
    "train_fusion",
    "verify",
]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

Names = str | Sequence[str]  # "text,audio" or ("text", "audio")
Config = AnyPath | Mapping[str, Any]  # a TOML file, or what it would hold
OnClips = Callable[[int, int, int], None]  # clips done, clips in all, failures so far


def _speaks_python(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Messages are written for the command line; here they name arguments instead of options."""

    @functools.wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with _errors_in_python():
            return function(*args, **kwargs)

    return call


def _errors_in_python() -> AbstractContextManager[None]:
    return errors_in_python(_FUNCTIONS)


@_speaks_python
def extract(
    split: "Split | Literal['all']",
    *,
    data: AnyPath | None = None,
    features: AnyPath | None = None,
    modalities: Names | None = None,
    text: str | None = None,
    video: str | None = None,
    audio: str | None = None,
    weights: str | Mapping[str, str] | None = None,
    weights_dir: AnyPath | None = None,
    context: "int | Literal['dialogue'] | None" = None,
    future: bool = False,
    num_frames: int | None = None,
    test_clips: Literal["fixed", "legacy"] | None = None,
    encoders: AnyPath | None = None,
    device: Literal["auto", "cpu", "cuda"] | None = None,
    precision: Literal["auto", "float32", "bfloat16"] | None = None,
    workers: int | None = None,
    address: str | None = None,
    config: Config | None = None,
    overwrite: bool = False,
    on_progress: OnClips = lambda done, total, failures: None,
) -> "ExtractReport":
    """Runs the encoders once over a split ("all": every split that has a CSV), and writes
    `<features>/<split>.h5`. What an earlier call finished is kept.

    weights: "pretrained", "random", or of each modality: {"video": "random"}
    context: utterances before each that the text encoder reads with it; "dialogue" reads each
        dialogue as a whole, with `future` also what follows an utterance
    encoders: a fine-tuned run whose encoders are used

    A clip that cannot be read is no error: `report.num_failures` counts them, and each split's
    `failures` say why.

    Raises UsageError, InputError, StorageError, RecipeMismatch, WeightsMissing or CacheBusy.
    """
    if isinstance(weights, Mapping):
        weights = ",".join(f"{modality}={choice}" for modality, choice in weights.items()) or None
    chosen = given(
        text=text,
        video=video,
        audio=audio,
        context=context,
        future=future,
        weights_dir=_path(weights_dir, "weights_dir"),
        run=_path(encoders, "encoders"),
    )
    options = given(
        data=_path(data, "data"),
        features=_path(features, "features"),
        splits=None if split == "all" else (split,),
        modalities=modalities_in(modalities),
        device=device,
        precision=precision,
        num_frames=num_frames,
        test_clips=test_clips,
        workers=workers,
        address=address,
        overwrite=overwrite,
    )

    from pipeline.extract.extract import ExtractConfig
    from pipeline.extract.extract import extract as run
    from pipeline.schema import SPLITS
    from pipeline.settings import build_config

    if isinstance(split, str) and split not in (*SPLITS, "all"):
        raise UsageError(f"split must be one of {', '.join(SPLITS)}, all, not {split!r}")
    settings = merge_with_file(
        config, options, always_given=("splits",), encoders=chosen | weights_in(weights)
    )
    return run(build_config(ExtractConfig, settings), on_progress)


@_speaks_python
def train_fusion(
    *,
    features: AnyPath | None = None,
    modalities: Names | None = None,
    input: "InputKind | None" = None,
    fusion: "FusionType | None" = None,
    context: Literal["none", "dialogue"] | None = None,
    future: bool = False,
    start: AnyPath | None = None,
    out: AnyPath | None = None,
    seed: int | None = None,
    ensemble: int | None = None,
    distil: AnyPath | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    dev_share: float | None = None,
    refit: bool = False,
    device: Literal["auto", "cpu", "cuda"] | None = None,
    tracker: Literal["tensorboard", "wandb"] | None = None,
    config: Config | None = None,
    overwrite: bool = False,
    on_epoch: "Callable[[EpochResult], None]" = lambda result: None,
) -> "TrainResult":
    """Trains a fusion model on the train cache; the epoch is chosen on dev, and test is not read.

    out: the run's folder; None makes a new one under runs/
    start: a trained run to continue from (warm start)
    ensemble: number of models, of so many seeds, whose probabilities the run averages
    distil: a trained run, from whose probabilities the model learns beside the labels
    dev_share: share of train's dialogues that is held out as dev; None is 0.1 if there is no dev
        cache (`result.dev.set_aside` lists them)
    refit: train again on all of train, the dialogues that were held out too

    Raises UsageError, InputError, StorageError (CacheBusy where another process writes the run) or
    RecipeMismatch.
    """
    options = given(
        features=_path(features, "features"),
        modalities=modalities_in(modalities),
        input=input,
        start=_path(start, "start"),
        out=_path(out, "out"),
        seed=seed,
        ensemble=ensemble,
        distil=_path(distil, "distil"),
        dev_share=dev_share,
        refit=refit,
        device=device,
        tracker=tracker,
        overwrite=overwrite,
    )

    from fusion.training.config import TrainConfig
    from fusion.training.train import train_fusion as run

    settings = merge_with_file(
        config,
        options,
        model=given(fusion=fusion, context=context, future=future),
        fit=given(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate),
    )
    return run(TrainConfig.from_mapping(settings), on_epoch)


@_speaks_python
def finetune(
    *,
    run: AnyPath | None = None,
    data: AnyPath | None = None,
    features: AnyPath | None = None,
    modalities: Names | None = None,
    unfreeze: Names | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: str | Mapping[str, float] | None = None,
    out: AnyPath | None = None,
    seed: int | None = None,
    ensemble: int | None = None,
    distil: AnyPath | None = None,
    ema: float | None = None,
    dev_share: float | None = None,
    device: Literal["auto", "cpu", "cuda"] | None = None,
    precision: Literal["auto", "float32", "bfloat16"] | None = None,
    workers: int | None = None,
    address: str | None = None,
    weights_dir: AnyPath | None = None,
    encoders: AnyPath | None = None,
    config: Config | None = None,
    resume: bool = False,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
    on_step: "Callable[[StepResult], None]" = lambda step: None,
    on_decoded: OnClips = lambda done, total, failures: None,
) -> "FinetuneResult":
    """Trains the encoders behind a trained fusion run together with it, on raw clips.

    run: where to start; None trains a fusion run first
    learning_rate: of text, video, audio or heads: {"text": 1e-5}
    dev_share: as in `train_fusion`, of that first run
    ensemble: number of models, of so many seeds, whose probabilities the run averages
    distil: a trained run, from whose probabilities the model learns beside the labels
    ema: decay of an average of the weights, which the run gets
    encoders: the fine-tuned run whose encoders made the features, where it is not found by itself
    say: called with a line of text about each long step

    Raises UsageError, InputError, StorageError (CacheBusy where another process writes the run),
    RecipeMismatch, ParityError or WeightsMissing.
    """
    options = given(
        run=_path(run, "run"),
        data=_path(data, "data"),
        features=_path(features, "features"),
        modalities=modalities_in(modalities),
        unfreeze=modalities_in(unfreeze, "--unfreeze"),
        out=_path(out, "out"),
        seed=seed,
        ensemble=ensemble,
        distil=_path(distil, "distil"),
        dev_share=dev_share,
        device=device,
        precision=precision,
        workers=workers,
        address=address,
        weights_dir=_path(weights_dir, "weights_dir"),
        encoders=_path(encoders, "encoders"),
        resume=resume,
        overwrite=overwrite,
    )

    from fusion.finetuning.finetune import finetune as run_finetuning
    from fusion.finetuning.job import FinetuneConfig

    tune = given(
        epochs=epochs,
        batch_size=batch_size,
        learning_rates=learning_rates_in(learning_rate),
        ema=ema,
    )
    settings = merge_with_file(config, options, tune=tune)
    return run_finetuning(FinetuneConfig.from_mapping(settings), say, on_step, on_decoded)


@_speaks_python
def evaluate(
    run: AnyPath,
    split: "Split" = "test",
    *,
    features: AnyPath | None = None,
    data: AnyPath | None = None,
    predictions: AnyPath | None = None,
    plots: bool = True,
    on_progress: OnClips = lambda done, total, failures: None,
) -> "EvalReport":
    """Measures a run on a split, and writes `evaluation-<split>.json` and plots into the run.

    features: None takes those that the run was trained on
    data: corpus to measure a fine-tuned run on, by its own encoders
    predictions: a .csv or .parquet file to write the predictions of every row to

    A test evaluation is counted in the run (`report.test_evaluations`).

    Raises UsageError, InputError, StorageError or MismatchError.
    """
    from fusion.evaluation.evaluate import EvaluateConfig
    from fusion.evaluation.evaluate import evaluate as measure
    from pipeline.settings import build_config

    options = given(
        run=_path(run, "run"),
        split=split,
        features=_path(features, "features"),
        data=_path(data, "data"),
        predictions=_path(predictions, "predictions"),
    )
    return measure(build_config(EvaluateConfig, options), on_progress, draw=plots)


@_speaks_python
def export(
    run: AnyPath,
    out: AnyPath,
    *,
    onnx: bool = False,
    quantise: Literal["int8", "bfloat16"] | None = None,
    prune: float | None = None,
    epochs: int | None = None,
    learning_rate: str | Mapping[str, float] | None = None,
    max_loss: float | None = None,
    data: AnyPath | None = None,
    split: Literal["dev", "test"] | None = None,
    link_encoders: bool = False,
    weights_dir: AnyPath | None = None,
    encoders: AnyPath | None = None,
    overwrite: bool = False,
) -> "ExportResult":
    """Writes a run as a bundle: one folder that predicts anywhere, without a download.

    onnx: ONNX graphs of the encoders and of the fusion model as well (extra `export`)
    quantise: "int8" writes graphs with 8-bit weights instead of the encoders, "bfloat16" encoders
        that compute in bfloat16
    prune: share of the units of each layer to remove; what is left is fine-tuned for at most
        `epochs` with `learning_rate`, as `finetune` takes it, in the folder `out` + ".pruning"
    max_loss: points of weighted F1 that these may lose on `split` of the corpus `data`, at the
        lower bound of the 95 % interval of the difference; `gate` of the result says what they cost
    link_encoders: leave the pretrained encoders out; whoever loads it needs the same weights
    encoders: the fine-tuned run that owns the encoders, where it is not found by itself

    Raises UsageError, InputError, StorageError, MismatchError or WeightsMissing; MismatchError also
    where a smaller model loses too much, or a pruned one is not faster.
    """
    with needs_extra("export"):
        from fusion.export.export import ExportConfig
        from fusion.export.export import export as write_bundle

    tune = given(epochs=epochs, learning_rates=learning_rates_in(learning_rate))

    options = given(
        run=_path(run, "run"),
        out=_path(out, "out"),
        onnx=onnx,
        quantise=quantise,
        prune=prune,
        tune=tune,
        max_loss=max_loss,
        data=_path(data, "data"),
        split=split,
        link_encoders=link_encoders,
        weights_dir=_path(weights_dir, "weights_dir"),
        encoders=_path(encoders, "encoders"),
        overwrite=overwrite,
    )
    return write_bundle(build_config(ExportConfig, options))


@_speaks_python
def verify(
    bundle: AnyPath,
    *,
    weights_dir: AnyPath | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    runtime: Literal["auto", "torch", "onnx"] = "auto",
) -> "Verification":
    """Compares every file of a bundle with its hash, and what it says of the golden clips here with
    what it said where it was exported; `trusted` is the answer, `stages` are the differences.

    Raises UsageError, InputError, StorageError, MismatchError or WeightsMissing.
    """
    from fusion.export.verify import VerifyConfig
    from fusion.export.verify import verify as verify_bundle

    options = given(
        bundle=_path(bundle, "bundle"),
        weights_dir=_path(weights_dir, "weights_dir"),
        device=device,
        runtime=runtime,
    )
    return verify_bundle(build_config(VerifyConfig, options))


def load(
    model: AnyPath | None = None,
    *,
    weights_dir: AnyPath | None = None,
    encoders: AnyPath | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    runtime: Literal["auto", "torch", "onnx"] = "auto",
) -> "Model":
    """A trained run with its encoders, ready for any media file.

        model = meld.load("runs/all")
        for utterance in model.predict("talk.mp4", subtitles="talk.srt"):
            print(utterance.spoken.text, utterance.prediction.emotion.label)

    model: None takes the bundled `meld-text`, which uses text alone
    encoders: the fine-tuned run that owns the encoders, where it is not found by itself
    precision: what encoders compute in that can; "auto" is that of the features which the run was
        trained on, and only that gives the probabilities of `evaluate`
    runtime: "onnx" computes the graphs of a bundle; "auto" takes PyTorch where it is installed and
        the encoders are there for it

    Raises UsageError, InputError, StorageError, MismatchError or WeightsMissing.
    """
    return Model(
        model,
        weights_dir=weights_dir,
        encoders=encoders,
        device=device,
        precision=precision,
        runtime=runtime,
    )


class Model:
    """A loaded run. Its files are read once; predictions are repeatable and leave no state.

    name: of the run; modalities: those that it takes
    """

    @_speaks_python
    def __init__(
        self,
        model: AnyPath | None = None,
        *,
        weights_dir: AnyPath | None = None,
        encoders: AnyPath | None = None,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
        runtime: Literal["auto", "torch", "onnx"] = "auto",
    ) -> None:
        from fusion.inference.load import ModelChoice
        from pipeline.decode.process import DecoderProcess

        choice = ModelChoice(
            run=_path(model, "model"),
            weights_dir=_path(weights_dir, "weights_dir"),
            encoders=_path(encoders, "encoders"),
            device=device,
            precision=precision,
            runtime=runtime,
        )
        wait_briefly(ROUNDS_BESIDE_A_DECODER)
        self._decoder = DecoderProcess()  # it starts while the model is loaded
        self._predictor = choice.load()
        self.name = self._predictor.name
        self.modalities = self._predictor.modalities

    def predict(
        self,
        media: AnyPath,
        *,
        subtitles: AnyPath | None = None,
        transcript: AnyPath | None = None,
        text: str | None = None,
        asr: str | None = None,
        no_text: bool = False,
        start: float | None = None,
        end: float | None = None,
    ) -> "Iterator[PredictedUtterance]":
        """Yields the predicted utterances of a media file, each as soon as its prediction is final.

        subtitles, transcript, text: where the words come from; `text` makes the whole file one
            utterance; None of them takes subtitles that lie beside the file under its name, or
            else a track inside it
        asr: the speech recogniser that hears the file, as `meld predict --asr`; "tiny.en" where
            nothing else says what is said
        no_text: the model gets video and audio, and no words
        start, end: seconds of the file

        Errors of the file or the words are raised before the first utterance: InputError,
        UsageError or StorageError. An utterance that cannot be predicted has an `error` and no
        `prediction`.
        """
        from fusion.inference.predict_media import predict_media

        prepared = self._prepare(
            media,
            subtitles=_path(subtitles, "subtitles"),
            transcript=_path(transcript, "transcript"),
            text=text,
            asr=asr,
            no_text=no_text,
            start_s=start,
            end_s=end,
        )
        return self._yield_predicted(
            predict_media(self._predictor, prepared, decoder=self._decoder)
        )

    def _yield_predicted(
        self, utterances: "Iterator[PredictedUtterance]"
    ) -> "Iterator[PredictedUtterance]":
        with _errors_in_python():
            yield from utterances

    @_speaks_python
    def timeline(
        self,
        media: AnyPath,
        *,
        subtitles: AnyPath | None = None,
        transcript: AnyPath | None = None,
        text: str | None = None,
        asr: str | None = None,
        no_text: bool = False,
        start: float | None = None,
        end: float | None = None,
        on_progress: Callable[[int, int], None] = lambda done_ms, total_ms: None,
    ) -> "Timeline":
        """The same as one object, with the media's length, the source of the words and a summary;
        `timeline.to_dict()` is what `meld predict --format json` writes.

        Arguments and errors as in `predict`.
        """
        from fusion.inference.predict_media import finish, predict_media

        prepared = self._prepare(
            media,
            subtitles=_path(subtitles, "subtitles"),
            transcript=_path(transcript, "transcript"),
            text=text,
            asr=asr,
            no_text=no_text,
            start_s=start,
            end_s=end,
        )
        predicted = predict_media(
            self._predictor, prepared, on_progress=on_progress, decoder=self._decoder
        )
        utterances = list(predicted)
        return finish(self._predictor, prepared, utterances)

    @_speaks_python
    def _prepare(self, media: AnyPath, **words: Any) -> "PreparedMedia":
        from fusion.inference.predict_media import WordsConfig, prepare_media
        from pipeline.settings import build_config

        path = _path(media, "media")
        if path is None:
            raise UsageError("media must be a path, not None")
        config = build_config(WordsConfig, given(**words))
        return prepare_media(path, config, self._predictor, decoder=self._decoder)


@_speaks_python
def read_cache(
    file: AnyPath,
    *,
    modalities: Names | None = None,
    want: "Want | Sequence[Want]" = ("raw", "embedding"),
) -> "FeatureCache":
    """A feature cache, whole in memory, as one frozen value of NumPy arrays: `cache.raw["text"]` is
    float32 [rows, layers, dim], `cache.embedding["text"]` float32 [rows, 128], and
    `cache.present["text"]` bool [rows], the mask of the rows that have it. In the order of the
    annotations there are `cache.keys` (split, dialogue, utterance), `cache.text`, `cache.speaker`,
    the labels by name (`cache.emotion`, `cache.sentiment`) and as indices
    (`cache.labels["emotion"]`, int64 [rows], -100 = unlabelled); `cache.recipe` says how the
    features were made.

    modalities, want: fewer are read faster

    Raises StorageError, or CacheCorrupt where a checksum does not hold.
    """
    from pipeline.cache.format import read_cache as read

    chosen: Any = modalities_in(modalities)
    path = _path(file, "file")
    if path is None:
        raise UsageError("file must be a path, not None")
    if not isinstance(want, Iterable):
        raise UsageError(f"want: raw, embedding or both, not {want!r}")
    groups: Any = (want,) if isinstance(want, str) else tuple(want)
    for name in groups:
        if name not in ("raw", "embedding"):
            raise UsageError(f"want: raw, embedding or both, not {name!r}")
    return read(path, modalities=chosen, want=groups)


@_speaks_python
def convert(
    source: AnyPath,
    to: Literal["parquet", "npz", "mmsa", "cache"],
    *,
    out: AnyPath,
    overwrite: bool = False,
) -> "ConvertReport":
    """Writes caches in another format, or caches from their files in one: see `docs/features.md`.

    source: a cache, a file that was converted from one, or a folder of such files

    Raises UsageError, InputError, StorageError or RecipeMismatch.
    """
    from pipeline.exchange.convert import ConvertConfig
    from pipeline.exchange.convert import convert as run
    from pipeline.settings import build_config

    options = {"source": _path(source, "source"), "to": to, "out": _path(out, "out")}
    return run(build_config(ConvertConfig, given(**options, overwrite=overwrite)))


@_speaks_python
def import_features(
    modality: "Modality",
    name: str,
    source: "AnyPath | Mapping[Split, AnyPath]",
    *,
    features: AnyPath | None = None,
    out: AnyPath | None = None,
    pool: Literal["mean", "mean_std", "none"] | None = None,
    suffix: str | None = None,
    column: str | None = None,
    overwrite: bool = False,
) -> "ImportReport":
    """Makes features of another tool a modality of the caches in `features`: `meld import`.

    source: a folder or file, or {split: folder or file}; docs/features.md says which there are
    name: what reports call the tool

    What is missing, doubled or not finite is no error: `report.num_failures` counts it.

    Raises UsageError, InputError, StorageError (CacheBusy where a cache is being written) or
    RecipeMismatch.
    """
    from pipeline.importing.config import ImportConfig
    from pipeline.importing.import_features import import_features as run
    from pipeline.settings import build_config

    by_split = source if isinstance(source, Mapping) else {"": source}
    paths = {split: _path(path, "source") for split, path in by_split.items()}
    if None in paths.values():
        raise UsageError("source must be a path, not None")
    options = given(
        modality=modality,
        name=name,
        source=tuple(f"{split}={path}" if split else str(path) for split, path in paths.items()),
        features=_path(features, "features"),
        out=_path(out, "out"),
        pool=pool,
        suffix=suffix,
        column=column,
        overwrite=overwrite,
    )
    return run(build_config(ImportConfig, options))


@_speaks_python
def torch_dataset(cache: "FeatureCache | AnyPath", *, input: "InputKind" = "raw") -> "CacheDataset":
    """A cache, or its file, as a map-style dataset of PyTorch, for a `DataLoader`. An item is a
    `fusion.data.dataset.CacheRow`: features, presence, and the two labels.

    Raises UsageError, or InputError where the cache has no such features; and as `read_cache`.
    """
    from fusion.data.dataset import CacheDataset

    return CacheDataset(_cache(cache), input=input)


@_speaks_python
def hf_dataset(cache: "FeatureCache | AnyPath") -> "datasets.Dataset":
    """A cache, or its file, as a dataset of Hugging Face's `datasets` (extra `datasets`), with the
    columns that `meld convert --to parquet` writes. Nothing is copied or downloaded.

    Raises UsageError where `datasets` is not installed; and as `read_cache`.
    """
    with needs_extra("datasets"):
        from pipeline.exchange.arrow import to_dataset

        return to_dataset(_cache(cache))


def _cache(cache: "FeatureCache | AnyPath") -> "FeatureCache":
    from pipeline.cache.format import FeatureCache

    if isinstance(cache, str | PathLike):
        return read_cache(cache)
    if not isinstance(cache, FeatureCache):
        raise UsageError(f"cache must be a path or what read_cache gives, not {_short(cache)}")
    return cache


def _path(path: AnyPath | None, argument: str) -> Path | None:
    if path is None:
        return None
    if not isinstance(path, str | PathLike) or not isinstance(fspath(path), str):
        raise UsageError(f"{argument} must be a path, not {_short(path)}")
    return Path(path)


def _short(value: object) -> str:
    """For one line: a result in place of its folder is pages long."""
    shown = reprlib.Repr()
    shown.maxother = 60
    return one_line(shown.repr(value))


# Whose arguments messages may name.
_FUNCTIONS = (
    extract,
    train_fusion,
    finetune,
    evaluate,
    convert,
    import_features,
    export,
    verify,
    load,
    Model.predict,
)
