"""Finds the encoders that made features, from the recipe of the features alone.

A fine-tuned run owns its encoders. Features made with them, and runs trained on those features,
record a name of that run (`name_of_owner`): a relative path, which stays valid when the folders are
moved together.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.encoders.choice import choose_saved
from pipeline.encoders.encoder import EncoderChoice, EncoderWish
from pipeline.encoders.registry import find_entry
from pipeline.encoders.saved import SavedEncoders, holds_encoders, read_encoders
from pipeline.errors import (
    InputError,
    MeldError,
    MismatchError,
    RecipeMismatch,
    UsageError,
    WeightsMissing,
)
from pipeline.recipe import EncoderSpec, FeatureRecipe
from pipeline.schema import Modality


def find_encoders(
    recipe: FeatureRecipe,
    modalities: Sequence[Modality],
    *,
    weights_dir: Path | None = None,
    run: Path | None = None,
    recorded: str | None = None,
    beside: Sequence[Path] = (),
) -> tuple[EncoderChoice, ...]:
    """The encoders that made the features of `recipe`, in the order of `modalities`; no weights
    are loaded, but all are hashed, and every field of their specs is compared.

    Args:
        weights_dir: a folder to look for pretrained weights in, before the libraries' own caches.
        run: the fine-tuned run or the bundle that owns the encoders.
        recorded: the name of that run as features or a checkpoint recorded it; it is looked for
            where `run` is None.
        beside: files and folders that the run may lie beside; the current folder comes first.

    Raises:
        MismatchError: another tool made the features, and no encoder here can.
        UsageError: `run` or `weights_dir` was given, and these encoders do not come from there.
        WeightsMissing: the encoders are not there.
        RecipeMismatch: encoders were found that did not make these features.
        InputError, CacheCorrupt: a modality is not in `recipe`, or `run` is no fine-tuned run, or
            a damaged one.
    """
    specs = {spec.modality: spec for spec in recipe.encoders}
    for modality in modalities:
        if modality not in specs:
            raise InputError(
                f"the features have no {modality}; they have {', '.join(recipe.modalities)}"
            )
    wanted = [specs[modality] for modality in modalities]
    for spec in wanted:
        if spec.is_foreign:
            raise MismatchError(
                f"the {spec.modality} features were imported ({spec.name}): no encoder here makes "
                "them, so the model cannot be given new media; train a run on the other "
                "modalities: meld train-fusion --modalities ..."
            )
    if run is not None and not _is_tuned(recipe.encoders) and not _holds_pretrained(run):
        raise UsageError(
            f"--encoders {run}: the features were not made by encoders of a fine-tuned run; "
            "leave the option out"
        )
    if run is None and not _is_tuned(wanted):
        _check_weights_dir(wanted, weights_dir)
        return tuple(_find_pretrained(spec, weights_dir) for spec in wanted)
    if weights_dir is not None:
        raise UsageError(
            f"--weights-dir {weights_dir}: a fine-tuned run or a bundle holds all weights of its "
            "encoders; leave the option out"
        )
    saved = _open_run(run, wanted) if run is not None else _find_owner(recorded, beside, wanted)
    return tuple(choose_saved(saved, spec.modality) for spec in wanted)


def name_of_owner(run: Path, features: Path) -> str:
    """What the features in `features` record of the fine-tuned run whose encoders made them.

    A path relative to the current folder, or else to the folder that `features` lies in, where the
    run lies below it; otherwise its bare name. Never an absolute path, which would be private.
    """
    whole = run.resolve()
    for folder in (Path.cwd(), features.resolve().parent):
        if folder in whole.parents:
            return whole.relative_to(folder).as_posix()
    return whole.name


def _holds_pretrained(run: Path) -> bool:
    """Whether it is a bundle of a run whose encoders were not fine-tuned."""
    return holds_encoders(run) and not _is_tuned(read_encoders(run).recipe.encoders)


def _is_tuned(specs: Sequence[EncoderSpec]) -> bool:
    return any(spec.weights == "finetuned" for spec in specs)


def _check_weights_dir(wanted: Sequence[EncoderSpec], weights_dir: Path | None) -> None:
    """Raises UsageError where none of these encoders would be searched for in the folder."""
    if weights_dir is None:
        return
    for spec in wanted:
        wish = EncoderWish.of(spec, weights_dir=weights_dir)
        if find_entry(spec.modality, spec.name).searches(wish):
            return
    names = ", ".join(f"{spec.name} ({spec.weights} weights)" for spec in wanted)
    raise UsageError(
        f"--weights-dir {weights_dir}: no weights are searched for, the encoders are {names}; "
        "leave the option out"
    )


def _find_pretrained(spec: EncoderSpec, weights_dir: Path | None) -> EncoderChoice:
    try:
        wish = EncoderWish.of(spec, weights_dir=weights_dir)
        choice = find_entry(spec.modality, spec.name).choose(wish, spec.precision)
    except WeightsMissing as error:
        raise WeightsMissing(
            f"{error}. These are the weights that made the features; name the folder that "
            f"{spec.name} lies in: --weights-dir"
        ) from error
    differences = _differences(choice.spec, spec)
    if differences:
        raise RecipeMismatch(
            f"the {spec.modality} encoder found here is not the one that made the features "
            f"({differences}); restore its files, name their folder with --weights-dir, or "
            "extract and train again"
        )
    return choice


def _find_owner(
    recorded: str | None, beside: Sequence[Path], wanted: Sequence[EncoderSpec]
) -> SavedEncoders:
    """The first run of the recorded name whose encoders are those wanted."""
    if recorded is None:
        raise WeightsMissing(
            "the features were made by encoders of a fine-tuned run, and do not say which; name "
            "the run with --encoders"
        )
    places = list(_places(recorded, beside))
    refusals: list[MeldError] = []
    for place in places:
        if not holds_encoders(place):
            continue
        try:
            return _open_run(place, wanted)
        except MeldError as error:  # another run of that name may still be the one
            refusals.append(error)
    if refusals:
        raise refusals[0]
    raise WeightsMissing(
        f"the features were made by encoders of the fine-tuned run {recorded}, which is not there "
        f"(looked for {', '.join(map(str, places))}); name the run with --encoders"
    )


def _open_run(run: Path, wanted: Sequence[EncoderSpec]) -> SavedEncoders:
    saved = read_encoders(run)
    _check_specs(str(run), saved.recipe, wanted)
    for spec in wanted:
        saved.check_files(spec.modality)
    return saved


def _places(recorded: str, beside: Sequence[Path]) -> Iterator[Path]:
    """Where a run of that name may lie. Its folder and what it lies beside may have moved
    together, so its last name alone counts there too."""
    name = Path(recorded)
    places = [name]
    for path in beside:
        places += [path.parent / name, path.parent / name.name]
    yield from dict.fromkeys(places)


def _check_specs(run: str, there: FeatureRecipe, wanted: Sequence[EncoderSpec]) -> None:
    """Raises RecipeMismatch, or InputError where the run lacks a modality."""
    specs = {spec.modality: spec for spec in there.encoders}
    for spec in wanted:
        if spec.modality not in specs:
            raise InputError(
                f"{run}: no {spec.modality} encoder; it has {', '.join(there.modalities)}"
            )
        differences = _differences(specs[spec.modality], spec)
        if differences:
            raise RecipeMismatch(
                f"the {spec.modality} encoder of {run} is not the one that made the features "
                f"({differences}); name the run that owns it with --encoders"
            )


def _differences(found: EncoderSpec, wanted: EncoderSpec) -> str:
    one, other = (FeatureRecipe(encoders=(spec,), decode=None) for spec in (wanted, found))
    return "; ".join(one.differences(other))
