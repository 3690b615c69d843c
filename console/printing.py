"""Printing: results go to stdout, as JSON or through rich; lines about progress go to stderr.

Only cli.py and console/ print.
"""

import json
import sys
from typing import Any


def print_json(values: dict[str, Any]) -> None:
    print(json.dumps(values, indent=2))


def print_rich(*renderables: Any) -> None:
    from rich.console import Console

    console = Console()
    for renderable in renderables:
        console.print(renderable)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
