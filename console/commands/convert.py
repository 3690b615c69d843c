"""`meld convert`: feature caches in the formats of others, and back."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from console.edge import reports_errors
from console.options import AsJson

EPILOG = (
    "Examples: `meld convert features --to parquet --out features-parquet`   "
    "`meld convert features/test.h5 --to npz --out .`   "
    "`meld convert features-parquet --to cache --out features-again`"
)


class FormatChoice(StrEnum):
    parquet = "parquet"
    npz = "npz"
    mmsa = "mmsa"
    cache = "cache"


@reports_errors
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="A feature cache, a .parquet or .npz file made of one, or a folder of such files."
        ),
    ],
    to: Annotated[
        FormatChoice,
        typer.Option(
            help="Format to write: Parquet with a dataset card, NumPy's npz, the pickle that MMSA "
            "trains on, or a feature cache."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that are there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write feature caches in other formats, with keys, labels, presence and recipe.

    Parquet and npz are converted back into caches that are equal to the bit. MMSA's pickle is only
    written: to read a pickle is to run it.
    """
    from console.show.exchange import show_converted
    from pipeline.exchange.convert import ConvertConfig
    from pipeline.exchange.convert import convert as run
    from pipeline.settings import build_config

    options = {"source": source, "to": to, "out": out, "overwrite": overwrite}
    show_converted(run(build_config(ConvertConfig, options)), as_json)
