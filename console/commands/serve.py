"""`meld serve`: predictions over HTTP, and a page."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from console.edge import WITHOUT_TORCH, log_as, log_beside, needs_extra, reports_errors
from console.options import (
    AsJson,
    ConfigFile,
    DeviceOption,
    EncoderOwner,
    LogChoice,
    Port,
    PredictingModel,
    RuntimeOption,
    ServedPrecision,
    WeightsDir,
)
from console.printing import print_json, say
from console.settings import read_settings
from pipeline.options import given

if TYPE_CHECKING:
    from serving.process import WorkerReady

logger = logging.getLogger(__name__)

EPILOG = (
    "Examples: `meld serve`   `meld serve --model runs/all --port 9000`   "
    "`meld serve --host 0.0.0.0 --key-file key.txt --data-dir /var/lib/meld`"
)


@reports_errors
def serve(
    model: PredictingModel = None,
    host: Annotated[
        str | None,
        typer.Option(
            help="Name or address to listen on; one that other machines reach needs --key-file.  "
            "[default: 127.0.0.1]"
        ),
    ] = None,
    port: Port = None,
    key_file: Annotated[
        Path | None,
        typer.Option(help="File whose first line is the key that clients must send."),
    ] = None,
    without_key: Annotated[
        bool,
        typer.Option("--without-key", help="Let other machines use the service without a key."),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Number of worker processes; each predicts one job at a time and holds the model "
            "in memory, and they share the cores.  [default: 1]"
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the jobs and their media, until they are erased.  [default: serve-data]"
        ),
    ] = None,
    weights_dir: WeightsDir = None,
    encoders: EncoderOwner = None,
    device: DeviceOption = None,
    precision: ServedPrecision = None,
    runtime: RuntimeOption = None,
    asr: Annotated[
        str | None,
        typer.Option(
            help="Speech recogniser for media without given words: tiny.en (English), or the "
            "folder of a Whisper model in CTranslate2 format.  [default: tiny.en]"
        ),
    ] = None,
    log: Annotated[
        LogChoice | None,
        typer.Option(
            help="Log on stderr. plain: lines, those of requests and jobs only with -v; json: one "
            "object a line, requests and jobs included.  [default: plain]"
        ),
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
    check: Annotated[
        bool, typer.Option("--check", help="Load everything, predict one sentence, and exit.")
    ] = False,
) -> None:
    """Serve predictions over HTTP: a REST API below /v1, and a page at /.

    Accepted jobs outlive the service: they go on when it is started again. With --json, the
    address and the model are printed once it listens.
    """
    options = given(
        model=model,
        host=host,
        port=port,
        key_file=key_file,
        without_key=without_key,
        workers=workers,
        data_dir=data_dir,
        weights_dir=weights_dir,
        encoders=encoders,
        device=device,
        precision=precision,
        runtime=runtime,
        asr=asr,
        log=log,
    )
    from serving.config import ServeConfig

    serve_config = read_settings(config, options).build(ServeConfig)
    with needs_extra("serve", WITHOUT_TORCH):
        from serving.logs import Event, JsonLines
        from serving.serve import check as check_service
        from serving.serve import serve as run

    if serve_config.log == "json":
        log_as(JsonLines())
    if check:
        ready = check_service(serve_config)
        say(f"{ready.model['name']} is loaded and predicts; {serve_config.data_dir} can be used")
        if as_json:
            print_json({"model": ready.model})
        return

    def tell(address: str, ready: "WorkerReady") -> None:
        if serve_config.log == "json":
            logger.info(Event("listening", address=address, model=ready.model["name"]))
        else:
            say(f"{ready.model['name']} listens on {address}; Ctrl-C ends it")
        if as_json:
            print_json({"address": address, "model": ready.model})
            sys.stdout.flush()  # it is not over for long

    with log_beside():
        run(serve_config, tell)
