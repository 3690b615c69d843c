"""Progress where stderr is no terminal, as in a log."""

import pytest

from console.progress import byte_progress, progress


def test_stdout_is_for_the_result_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("clips", note="failures") as advance:
        print("a worker died")
        advance(1, 2, 1)
        advance(2, 2, told="done")
    print("the result")
    told = capsys.readouterr()
    assert (told.out, told.err) == ("the result\n", "a worker died\n")


class Clock:
    """time.monotonic, which stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    # Of this module alone: the event loop of a service in this process has the real one.
    monkeypatch.setattr("console.progress.monotonic", clock)
    return clock


def test_what_is_done_and_left_is_reported_in_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    with progress("encoding clips", note="failures") as advance:
        advance(0, 200)
        clock.now_s += 9
        advance(18, 200)
        assert capsys.readouterr().err == ""  # too soon
        clock.now_s += 11
        advance(40, 200, 2)
        assert capsys.readouterr().err == "encoding clips: 40 of 200, about 80 s left, 2 failures\n"
        clock.now_s += 80
        advance(80, 200, told="loss 0.5")
    assert capsys.readouterr().err == "encoding clips: 80 of 200, about 2 min left, loss 0.5\n"


def test_the_time_left_is_by_the_rate_of_this_run_and_this_stage(
    capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    with progress("demo") as advance:
        advance(90, 100)  # done by an earlier run
        clock.now_s += 20
        advance(92, 100)
        clock.now_s += 100
        advance(0, 20)  # the next stage
        clock.now_s += 40
        advance(10, 20)
    assert capsys.readouterr().err.splitlines() == [
        "demo: 92 of 100, about 80 s left",
        "demo: 0 of 20",
        "demo: 10 of 20, about 40 s left",
    ]


def test_a_log_of_hours_has_few_lines(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with progress("encoding clips") as advance:
        for second in range(5 * 3600):
            clock.now_s += 1
            advance(second, 5 * 3600)
    lines = capsys.readouterr().err.splitlines()
    assert 50 < len(lines) < 120
    assert "about 4 h left" in lines[len(lines) // 2]


def test_bytes_are_reported_in_lines_but_not_at_every_step(
    capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    with byte_progress() as advance:
        advance("fetching", 10**9, 2 * 10**9)
        assert capsys.readouterr().err == ""
        clock.now_s += 20
        advance("fetching", 15 * 10**8, 2 * 10**9)
        clock.now_s += 20
        advance("unpacking", 10**7, None)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == "fetching: 1.50 of 2.00 GB, about 20 s left\nunpacking: 0.01 of ? GB\n"
