"""`meld listen`: a page that predicts live from microphone and camera."""

import sys
import urllib.request
import webbrowser
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from console.edge import WITHOUT_TORCH, needs_extra, reports_errors
from console.options import (
    AsJson,
    ConfigFile,
    DeviceOption,
    EncoderOwner,
    Port,
    PredictingModel,
    RuntimeOption,
    ServedPrecision,
    WeightsDir,
)
from console.printing import print_json, say
from console.settings import read_settings
from pipeline.errors import StorageError, UsageError
from pipeline.options import given

if TYPE_CHECKING:
    from serving.process import WorkerReady

EPILOG = (
    "Examples: `meld listen`   `meld listen --model runs/all`   "
    "`meld listen --service https://meld.example.org`"
)
_PAGE = "/live"
_SECONDS_TO_ANSWER = 10.0


@reports_errors
def listen(
    service: Annotated[
        str | None,
        typer.Option(help="URL of a running service; without it, one is started on this machine."),
    ] = None,
    model: PredictingModel = None,
    port: Port = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the recordings that are kept on request.  [default: serve-data]"
        ),
    ] = None,
    weights_dir: WeightsDir = None,
    encoders: EncoderOwner = None,
    device: DeviceOption = None,
    precision: ServedPrecision = None,
    runtime: RuntimeOption = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
    no_browser: Annotated[
        bool,
        typer.Option("--no-browser", help="Print the page's address without opening a browser."),
    ] = False,
) -> None:
    """Recognise emotions live while you speak: opens a page with microphone and camera.

    Nothing is kept unless you request it on the page. Ctrl-C ends a service that was started here.
    With --json, the address of the page is printed, once it can be opened.
    """
    options = given(
        model=model,
        port=port,
        data_dir=data_dir,
        weights_dir=weights_dir,
        encoders=encoders,
        device=device,
        precision=precision,
        runtime=runtime,
    )
    if service is not None:
        if options or config is not None:
            raise UsageError(
                f"--service {service} runs already, with settings of its own; leave the other "
                "options out"
            )
        _show(_find(service), no_browser=no_browser, as_json=as_json)
        return
    from serving.config import ServeConfig

    serve_config = read_settings(config, options).build(ServeConfig)
    with needs_extra("serve", WITHOUT_TORCH):
        from serving.serve import serve

    def tell(address: str, ready: "WorkerReady") -> None:
        say(f"{ready.model['name']} listens; Ctrl-C ends it")
        _show(address, no_browser=no_browser, as_json=as_json)

    serve(serve_config, tell)


def _find(service: str) -> str:
    """The service's address without a path. Raises UsageError, or StorageError where nothing
    answers there."""
    address = service.rstrip("/").removesuffix(_PAGE)
    if not address.startswith(("http://", "https://")):
        raise UsageError(f"--service {service}: an address, such as http://localhost:8000")
    try:
        with urllib.request.urlopen(f"{address}/livez", timeout=_SECONDS_TO_ANSWER):
            return address
    except (OSError, ValueError, HTTPException) as error:  # the last: what speaks is no HTTP
        reason = getattr(error, "reason", None) or error
        raise StorageError(f"{address}: no service answers there ({reason})") from error


def _show(address: str, *, no_browser: bool, as_json: bool) -> None:
    page = f"{address}{_PAGE}"
    if as_json:
        print_json({"page": page})
        sys.stdout.flush()  # the service may go on for long
    if no_browser or not webbrowser.open(page):
        say(f"Open {page} in a browser")
    else:
        say(f"{page} is opened in a browser")
