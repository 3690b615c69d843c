"""Progress where stderr is no terminal, as in a log."""

import pytest

from console.progress import byte_progress, progress


def test_stdout_is_for_the_result_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("clips", note="accidents") as advance:
        print("a worker died")
        advance(1, 2, 1)
        advance(2, 2, told="done")
    print("the result")
    told = capsys.readouterr()
    assert (told.out, told.err) == ("the result\n", "a worker died\n")


def test_bytes_are_told_in_lines_but_not_at_every_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with byte_progress() as advance:
        advance("fetching", 10**9, 2 * 10**9)
        assert capsys.readouterr().err == ""
        monkeypatch.setattr("console.progress._SAY_EVERY_S", -1.0)
        advance("fetching", 15 * 10**8, 2 * 10**9)
        advance("unpacking", 10**7, None)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == "fetching: 1.50 of 2.00 GB\nunpacking: 0.01 of ? GB\n"
