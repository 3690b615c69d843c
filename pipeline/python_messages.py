"""Messages that are written for the command line, as `import meld` says them: with arguments in the
place of options."""

import inspect
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pipeline.errors import MeldError
from pipeline.system.extras import missing_part
from pipeline.system.os_errors import storage_error

Functions = Collection[Callable[..., Any]]

# A value is in quotes where it needs them, or a folder of dots, or ends before the sentence does.
_VALUE = r"""(?:(?:'[^']*'|"'")+|\.{1,2}(?=[\s,;)]|$)|(?!--)[^\s;()']*[^\s,;().'])"""
_OPTIONS = rf"(?: --[a-z][a-z-]*[a-z](?: {_VALUE})?)*"
_TYPED = re.compile(
    # evaluate takes its run without an option's name: no message gives it as advice
    rf"\bmeld (?P<function>extract|train-fusion|finetune)\b(?P<words>{_OPTIONS})"
    # no function does that: it stays a command
    rf"|\b(?:meld|pip|docker) [a-z]+(?: (?!--)[^\s,;()]+)?{_OPTIONS}"
    r"|(?<![^\s(\"'])--(?P<option>[a-z][a-z-]*[a-z])"
)


@contextmanager
def errors_in_python(functions: Functions) -> Iterator[None]:
    """Errors become a `MeldError` of one line that names arguments of `functions`, if they are the
    caller's or the system's; bugs stay as they are."""
    try:
        yield
    except MeldError as error:
        error.args = (in_python(str(error), functions),)
        raise
    except ModuleNotFoundError as error:
        missing = missing_part(error)
        if missing is None:
            raise
        raise missing from error
    except OSError as error:
        failure = storage_error(error)
        if failure is None:
            raise
        raise failure from error


def in_python(message: str, functions: Functions) -> str:
    """ "--weights-dir" becomes "weights_dir", and "meld extract --split train" becomes
    'meld.extract(split="train")'. What is none of `functions` stays as it is typed in a shell."""
    known = _arguments(functions)

    def say(match: re.Match[str]) -> str:
        if match["function"]:
            return _call(match["function"], shlex.split(match["words"]))
        return _argument(match["option"], known) if match["option"] else match.group()

    return _TYPED.sub(say, message)


def _arguments(functions: Functions) -> dict[str, bool]:
    """Of all functions: the option, and whether it is a flag."""
    parameters = (inspect.signature(function).parameters for function in functions)
    return {
        name.replace("_", "-"): parameter.default is False
        for each in parameters
        for name, parameter in each.items()
    }


def _argument(option: str, known: Mapping[str, bool]) -> str:
    if option not in known:
        return f"--{option}"
    return f"{option.replace('-', '_')}{'=True' if known[option] else ''}"


def _call(function: str, words: list[str]) -> str:
    """Options without a value are flags; --end-to-end says what the function's name does."""
    arguments = []
    while words:
        name = words.pop(0).removeprefix("--").replace("-", "_")
        value = words.pop(0) if words and not words[0].startswith("--") else None
        if name != "end_to_end":
            arguments.append(f'{name}="{value}"' if value is not None else f"{name}=True")
    return f"meld.{function.replace('-', '_')}({', '.join(arguments)})"
