"""`meld download`: gets MELD."""

from pathlib import Path
from typing import Annotated

import typer

from console.edge import reports_errors
from console.options import AsJson, ConfigFile
from console.progress import byte_progress
from console.settings import read_settings
from pipeline.options import given, splits_in

EPILOG = (
    "Examples: `meld download`   `meld download --from MELD.Raw.tar.gz`   "
    "`meld download --from unpacked/MELD.Raw` (used in place)   `meld download --splits dev,test`"
)


@reports_errors
def download(
    out: Annotated[
        Path | None, typer.Option(help="Folder to write CSVs and clips to.  [default: data]")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="Another URL of MELD.Raw.tar.gz.  [default: the public ones]"),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Use a copy instead of downloading: the archive, or a folder that holds it or "
            "its unpacked content (Kaggle's copy too). An unpacked folder is linked, not copied.",
        ),
    ] = None,
    splits: Annotated[
        str | None,
        typer.Option(help="Comma-separated subset of train,dev,test.  [default: all three]"),
    ] = None,
    keep_archive: Annotated[
        bool, typer.Option("--keep-archive", help="Keep the downloaded archive in --out.")
    ] = False,
    sha256: Annotated[
        str | None,
        typer.Option(help="SHA-256 of the archive, if it is not the published one."),
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Get MELD's clips and annotations: download, verify and unpack 10.9 GB, or use a copy.

    A stopped download is resumed by the same command. It needs some 23 GB of disk while it runs and
    12 GB afterwards.
    """
    options = given(
        out=out,
        url=url,
        source=source,
        splits=splits_in(splits),
        keep_archive=keep_archive,
        sha256=sha256,
    )
    said = read_settings(config, options)

    from console.show.download import show_download
    from pipeline.download.config import DownloadConfig
    from pipeline.download.download import download as run_download

    download_config = said.build(DownloadConfig)
    with byte_progress() as advance:
        report = run_download(download_config, advance)
    show_download(report, as_json)
