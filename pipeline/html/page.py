"""HTML pages that are one file: the environment of their templates, and the frame they share.

Everything that comes from a corpus, a path or a file is hostile to a page: templates escape all
of it, and the frame forbids the page to load or run anything.
"""

import base64
from datetime import date
from importlib.metadata import version

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

# How a page begins: only files that begin so are replaced.
BEGINS = b"<!doctype html>"


def page_environment(package: str, folder: str) -> Environment:
    """For the templates in a package's folder; they extend `frame.html.jinja`."""
    environment = Environment(
        loader=ChoiceLoader(
            [PackageLoader(package, folder), PackageLoader("pipeline.html", "page_frame")]
        ),
        autoescape=True,  # whatever a template is called
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        thousands=lambda count: f"{count:,}",
        data_uri=lambda jpeg: f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}",
    )
    environment.globals.update(today=date.today().isoformat(), version=version("meld"))
    return environment
