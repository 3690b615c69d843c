"""`meld import`: features that another tool made become a modality of the caches."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from console.edge import EXIT_SOME_FAILED, reports_errors
from console.options import AsJson, Features
from pipeline.options import given

EPILOG = (
    "Examples: `meld import --modality video --name openface --from openface_csvs`   "
    "`meld import --modality audio --name egemaps --from train=a.csv --from dev=b.csv --from "
    "test=c.csv`   `meld import --modality video --name i3d --from i3d --suffix _rgb`"
)


class ModalityChoice(StrEnum):
    text = "text"
    video = "video"
    audio = "audio"


class PoolChoice(StrEnum):
    mean = "mean"
    mean_std = "mean_std"
    none = "none"


@reports_errors
def import_features(
    modality: Annotated[ModalityChoice, typer.Option(help="Modality that the features become.")],
    name: Annotated[
        str, typer.Option(help="Name of the tool that made them; reports show it as foreign.")
    ],
    source: Annotated[
        list[str],
        typer.Option(
            "--from",
            metavar="PATH|SPLIT=PATH",
            help="Folder of .npy or .csv files, one a clip, named as the clip; or one .npz, "
            ".parquet or .csv file. A folder may have a folder or file for each split; otherwise "
            "say train=PATH, and the option again for dev and test.",
        ),
    ],
    features: Features = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write the caches to.  [default: those in --features are replaced]"
        ),
    ] = None,
    pool: Annotated[
        PoolChoice | None,
        typer.Option(
            help="What becomes of the frames of a clip: mean; mean_std, their standard deviation "
            "too; none, where a clip has layers.  [default: mean, where there are frames]"
        ),
    ] = None,
    suffix: Annotated[
        str | None,
        typer.Option(help="What follows the clip's name: _rgb for dia0_utt3_rgb.npy."),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(help="Column of a .parquet file, or array of an .npz, if there are several."),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace the modality if the caches have it, or the caches in --out.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Import features that another tool made, such as OpenFace, openSMILE or video_features.

    They are matched with the rows of the caches by dialogue and utterance. What is missing,
    doubled, not finite or of no clip is listed (exit status 3), and such a row is absent. Runs
    train on imported features; predict cannot use them, as nothing here makes them of new media.
    """
    from console.show.importing import show_import
    from pipeline.importing.config import ImportConfig
    from pipeline.importing.import_features import import_features as run
    from pipeline.settings import build_config

    options = given(
        modality=modality.value,
        name=name,
        source=tuple(source),
        features=features,
        out=out,
        pool=None if pool is None else pool.value,
        suffix=suffix,
        column=column,
        overwrite=overwrite,
    )
    report = run(build_config(ImportConfig, options))
    show_import(report, as_json)
    if report.num_failures:
        raise typer.Exit(EXIT_SOME_FAILED)
