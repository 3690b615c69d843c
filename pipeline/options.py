"""Options of a command, or arguments of its Python function -> a mapping that a config is built
from.

Only what was given is passed on, and over the settings of a `config` file: every default is the
config's own. What is wrong with the text of an option is said here, with the option's name; what
is wrong with a value is said by the config.
"""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from os import PathLike
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.settings import merge_settings

AnyPath = str | PathLike[str]


def given(**options: Any) -> dict[str, Any]:
    """What was given of these, choices as plain text.

    A flag that was left out is not False but not given: the file may have set it.
    """
    return {
        name: option.value if isinstance(option, StrEnum) else option
        for name, option in options.items()
        if option is not None and option is not False
    }


def merge_with_file(
    file: AnyPath | Mapping[str, Any] | None,
    options: dict[str, Any],
    *,
    always_given: Sequence[str] = (),
    **tables: dict[str, Any],
) -> dict[str, Any]:
    """The settings of a TOML file, or of what it would hold, with the options over them, table by
    table.

    always_given: settings that an option always says, so that the file's would never count
    Raises UsageError where the file cannot be read or has one of those, or one of `tables` is no
    table in it.
    """
    settings = dict(file) if isinstance(file, Mapping) else _read_file(file)
    for name in always_given:
        if name in settings:
            raise UsageError(
                f"--config: {name} = {settings[name]}: an option sets it; leave it out of the file"
            )
    for name in tables:
        if not isinstance(settings.get(name, {}), Mapping):
            raise UsageError(f"{name} is a table of settings, not {settings[name]!r}")
    typed = {name: table for name, table in tables.items() if table}
    return merge_settings(settings, {**options, **typed})


def modalities_in(
    names: str | Sequence[str] | None, option: str = "--modalities"
) -> tuple[str, ...] | None:
    """ "audio, text" or a sequence -> each once, in our order.

    Raises UsageError unless `names` has some of them and nothing else.
    """
    from pipeline.schema import MODALITIES

    return _subset(names, MODALITIES, option)


def splits_in(names: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """The same of splits."""
    from pipeline.schema import SPLITS

    return _subset(names, SPLITS, "--splits")


def weights_in(text: str | None) -> dict[str, str]:
    """Settings of the `encoders` table: "random" -> text's and video's, which always have trained
    weights; "video=random,text=pretrained" -> each.

    Raises UsageError for anything else.
    """
    if text is None:
        return {}
    if not isinstance(text, str):
        raise UsageError(f"--weights {text!r}: pretrained, random, or a choice per modality")
    from pipeline.encoders.choice import ALWAYS_TRAINED, EncoderRequest
    from pipeline.schema import MODALITIES

    known = [name for name in MODALITIES if f"{name}_weights" in vars(EncoderRequest())]
    if "=" not in text:
        text = ",".join(f"{name}={text}" for name in ALWAYS_TRAINED)
    chosen = {}
    for part in text.split(","):
        modality, _, choice = part.strip().partition("=")
        if modality not in known or choice not in ("pretrained", "random"):
            raise UsageError(
                f"--weights {part.strip()}: pretrained, random, or per modality such as "
                "video=random"
            )
        chosen[f"{modality}_weights"] = choice
    return chosen


def context_in(text: str | int | None) -> "int | str | None":
    """ "5" -> 5; "dialogue" stays. Raises UsageError for anything else."""
    if text is None or isinstance(text, int) or text == "dialogue":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(
            f"--context {text}: a number of previous utterances, or dialogue"
        ) from error


def learning_rates_in(rates: str | Mapping[str, float] | None) -> dict[str, float] | None:
    """Settings of the `tune.learning_rates` table: "text=1e-5,heads=1e-4" -> each.

    Which parts there are, and which of them learn, is checked where that is known.
    Raises UsageError for what is no number of a part.
    """
    if rates is None or isinstance(rates, Mapping):
        return None if rates is None else dict(rates)
    chosen = {}
    for part in str(rates).split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        try:
            chosen[name] = float(value)
        except ValueError as error:
            raise UsageError(
                f"--learning-rate {part.strip()}: takes a rate per part that learns, such as "
                "text=1e-5,heads=1e-4"
            ) from error
    return chosen


def _subset(
    names: str | Sequence[str] | None, known: Sequence[str], option: str
) -> tuple[str, ...] | None:
    if names is None:
        return None
    if not isinstance(names, Iterable):
        raise UsageError(f"{option} {names!r}: some of {', '.join(known)}")
    each = list(names.split(",") if isinstance(names, str) else names)
    wanted = {str(name).strip() for name in each if str(name).strip()}
    if not wanted or not wanted <= set(known):
        told = names if isinstance(names, str) else ",".join(map(str, each))
        raise UsageError(f"{option} {told}: a comma-separated subset of {', '.join(known)}")
    return tuple(name for name in known if name in wanted)


def _read_file(path: AnyPath | None) -> dict[str, Any]:
    if path is None:
        return {}
    if not isinstance(path, str | PathLike):
        raise UsageError(f"--config {path!r}: a TOML file, or a mapping of settings")
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    # ValueError: also no UTF-8, or a number of thousands of digits; RecursionError: nested so.
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--config {path}: no valid TOML: {error}") from error
