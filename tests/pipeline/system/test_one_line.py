"""Text from elsewhere, in one line and without what nobody else should read."""

import pytest

from pipeline.system.one_line import one_line, without_secrets


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("http://bob:hunter2@host/a.tar?token=hunter2 404", "http://host/a.tar 404"),
        ("http://host:80/a#hunter2 and ftp://hunter2@h/b", "http://host:80/a and ftp://h/b"),
        ("no address: bob@host, a?b#c", "no address: bob@host, a?b#c"),
        ("x" * 500_000, "x" * 500_000),  # once took the square of its length
        ("http://" + "@" * 500_000, "http://"),
    ],
    ids=["user and query", "fragment", "none", "a long word", "a long user"],
)
def test_addresses_lose_users_passwords_and_queries(told: str, shown: str) -> None:
    assert without_secrets(told) == shown


def test_line_breaks_and_terminal_controls_are_written_out() -> None:
    assert one_line("a\nb\x1b[2J\udcff") == r"a\nb\x1b[2J\udcff"
