"""What README and docs/ say can be followed: links, commands, settings, tables."""

import ast
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main

import cli
from console.edge import EXIT_INTERRUPTED, EXIT_SOME_FAILED
from pipeline.corpus.annotations import read_corpus
from pipeline.errors import MeldError

Meld = Callable[..., Any]

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")
_INLINE = re.compile(r"`((?:\.venv/bin/)?meld [^`]+)`")
# A test, by its file below tests/ or of the file that was named before it.
_TEST = re.compile(r"`([\w/]*(?:\.py)?)::(\w+)`")


def blocks(page: str, language: str) -> Iterator[str]:
    for match in _BLOCK.finditer(TEXTS[page]):
        if match[1] == language:
            yield match[2]


def command_lines() -> Iterator[tuple[str, str]]:
    """(page, line) of every command that is shown by itself."""
    for page in TEXTS:
        for block in blocks(page, ""):
            for line in block.splitlines():
                if re.match(r"(\.venv/bin/)?meld( |$)", line):
                    yield page, line


def words_of(line: str) -> list[str]:
    """What the shell would hand to meld: without comments and redirections."""
    words = shlex.split(line, comments=True)[1:]
    end = next((place for place, word in enumerate(words) if word in (">", "|")), len(words))
    return words[:end]


def check(words: list[str], *, is_whole: bool) -> None:
    """Raises what the command line raises for these words, or KeyError for no command."""
    group: Any = typer.main.get_command(cli.app)
    if not words or words[0].startswith("-"):
        group.make_context("meld", words, resilient_parsing=True)
        return
    command, rest = group.commands[words[0]], words[1:]
    while hasattr(command, "commands") and rest:
        command, rest = command.commands[rest[0]], rest[1:]
    if words[:2] == ["config", "show"]:
        command, rest, is_whole = group.commands[rest[0]], rest[1:], False
    try:
        command.make_context(words[0], rest)
    except typer.BadParameter as error:
        if is_whole or type(error).__name__ != "MissingParameter":
            raise


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_to_something(page: str) -> None:
    targets = [each for each in _LINK.findall(TEXTS[page]) if "://" not in each]
    missing = [each for each in targets if not ((ROOT / page).parent / each).exists()]
    assert missing == []


def test_every_page_of_docs_is_linked_to() -> None:
    linked = {
        ((ROOT / page).parent / each).resolve()
        for page, text in TEXTS.items()
        for each in _LINK.findall(text)
    }
    assert [path.name for path in PAGES if path.parent.name == "docs" and path not in linked] == []


def test_there_are_commands_to_check() -> None:
    assert len(list(command_lines())) > 40


@pytest.mark.parametrize(("page", "line"), list(command_lines()))
def test_every_command_that_is_shown_is_one(page: str, line: str) -> None:
    check(words_of(line), is_whole=True)


@pytest.mark.parametrize("page", TEXTS)
def test_every_command_within_a_sentence_is_one(page: str) -> None:
    """It may leave out what a command cannot do without, and say COMMAND for any."""
    for line in _INLINE.findall(TEXTS[page]):
        words = words_of(line)
        if "COMMAND" not in words:
            check(words, is_whole=False)


def test_a_planted_mistake_is_caught() -> None:
    with pytest.raises(KeyError):
        check(["trian-fusion"], is_whole=True)
    for words in (["extract", "--splt", "dev"], ["extract"], ["extract", "--split", "val"]):
        with pytest.raises(Exception, match=r"spli?t|val"):
            check(words, is_whole=True)
    with pytest.raises(Exception, match="--fussion"):
        check(["config", "show", "train-fusion", "--fussion", "late"], is_whole=True)


def settings_files() -> list[tuple[str, str]]:
    return [(page, block) for page in TEXTS for block in blocks(page, "toml")]


@pytest.mark.parametrize(("page", "content"), settings_files())
def test_settings_that_are_shown_are_taken(
    page: str, content: str, meld: Meld, tmp_path: Path
) -> None:
    """The first line of a block says of which command."""
    file = tmp_path / "settings.toml"
    file.write_text(content)
    command = content.splitlines()[0].removeprefix("# ")
    shown = meld("config", "show", command, "--config", file)
    assert shown.status == 0, shown.err
    assert "# file" in shown.out


@pytest.mark.parametrize("page", TEXTS)
def test_a_python_block_imports_what_it_uses(page: str) -> None:
    """So that one that is copied by itself runs."""
    for block in blocks(page, "python"):
        nodes = list(ast.walk(ast.parse(block)))
        names = {each.id for each in nodes if isinstance(each, ast.Name)}
        imported = {
            (alias.asname or alias.name).partition(".")[0]
            for each in nodes
            if isinstance(each, ast.Import | ast.ImportFrom)
            for alias in each.names
        }
        assert names & {"meld", "np", "torch", "h5py"} <= imported


def test_the_csv_that_is_shown_is_a_corpus(tmp_path: Path) -> None:
    [table] = blocks("docs/own-corpora.md", "csv")
    (tmp_path / "train_sent_emo.csv").write_text(table)
    rows = read_corpus(tmp_path, None)["train"]
    assert len(rows) == len(table.splitlines()) - 1
    assert {row.emotion for row in rows} >= {"joy", "anger", "disgust", "fear"}


def test_every_exit_status_has_its_line() -> None:
    def statuses(error: type[MeldError]) -> Iterator[int]:
        yield error.exit_status
        for each in error.__subclasses__():
            yield from statuses(each)

    told = {int(each) for each in re.findall(r"^\| (\d+) \|", TEXTS["docs/exit-statuses.md"], re.M)}
    of_signals = {EXIT_INTERRUPTED, 143}
    assert told == {0, EXIT_SOME_FAILED, *of_signals, *statuses(MeldError)}


def named_tests(text: str) -> Iterator[tuple[str, str]]:
    """(file, name) of every test that a page names."""
    file = ""
    for match in _TEST.finditer(text):
        file = match[1] or file
        yield file, match[2]


def functions_of(file: Path) -> set[str]:
    if not file.is_file():
        return set()
    statements = ast.parse(file.read_text(encoding="utf-8")).body
    return {each.name for each in statements if isinstance(each, ast.FunctionDef)}


@pytest.mark.parametrize("page", ["docs/faults.md", "docs/security.md"])
def test_every_test_that_a_page_names_is_there(page: str) -> None:
    named = list(named_tests(TEXTS[page]))
    there = {file: functions_of(ROOT / "tests" / file) for file in {file for file, _ in named}}
    assert [f"{file}::{name}" for file, name in named if name not in there[file]] == []
    assert len(named) > 5


def test_a_planted_test_that_is_none_is_found() -> None:
    named = list(named_tests("`test_docs.py::test_there_are_commands_to_check`, `::test_no_such`"))
    assert named == [
        ("test_docs.py", "test_there_are_commands_to_check"),
        ("test_docs.py", "test_no_such"),
    ]
    assert [name in functions_of(ROOT / "tests" / file) for file, name in named] == [True, False]


def test_every_fault_of_the_list_has_its_row_and_its_tests() -> None:
    """A fault has a number; who adds one, or has no test for one, says so in the page."""
    rows = dict(re.findall(r"^\| (\w\d*) \| (.*) \|$", TEXTS["docs/faults.md"], re.MULTILINE))
    assert {str(number) for number in range(1, 55)} <= rows.keys()
    untested = [name for name, row in rows.items() if not _TEST.search(row)]
    assert untested == ["5"]  # as 1


def modules_of(*packages: str) -> set[str]:
    paths = (path for package in packages for path in (ROOT / package).rglob("*.py"))
    return {path.name for path in paths} - {"__init__.py"}


def test_every_module_has_its_place_in_the_layout_and_every_name_there_is_one() -> None:
    named = set(re.findall(r"[\w-]+\.py\b", TEXTS["docs/layout.md"]))
    assert modules_of("pipeline", "fusion", "serving") - named == set()
    everywhere = modules_of("pipeline", "fusion", "serving", "console", "bench", "tests")
    assert named - everywhere - {path.name for path in ROOT.glob("*.py")} == set()
