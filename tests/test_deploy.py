"""The recipes of docs/deploy.md fit the program: commands, settings, versions, limits."""

import configparser
import re
import shlex
import sys
import tomllib
from typing import Any

import pytest
import typer
import typer.main
import yaml

import cli
from pipeline.errors import UsageError
from pipeline.settings import build_config
from tests.conftest import ROOT
from tests.layout import read_imports

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from serving.config import Limits, ServeConfig

DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
KUBERNETES = [*yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text())]
NGINX = (ROOT / "deploy/nginx.conf").read_text()
PIN = re.compile(r"^([a-z0-9-]+)==([^\s;]+)", re.MULTILINE)


def pod() -> Any:
    [deployment] = [each for each in KUBERNETES if each["kind"] == "Deployment"]
    return deployment["spec"]["template"]["spec"]


def unit() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(ROOT / "deploy/meld.service")
    return parser["Service"]


def instruction(name: str) -> list[str]:
    """The words of the last instruction of that name."""
    found = re.findall(rf"^\s*{name} (\[.*\])$", DOCKERFILE, re.MULTILINE)[-1]
    words: list[str] = yaml.safe_load(found)
    return words


COMMANDS = {
    "Dockerfile": instruction("CMD"),
    "systemd": shlex.split(unit()["ExecStart"])[1:],
    "Kubernetes": pod()["containers"][0]["args"],
    "SageMaker": shlex.split(
        re.findall(r"^exec meld (.*)$", (ROOT / "deploy/sagemaker-serve").read_text(), re.M)[0]
    )[:-1],
}


@pytest.mark.parametrize("where", COMMANDS)
def test_each_recipe_starts_the_service_with_options_that_it_has(where: str) -> None:
    first, *words = COMMANDS[where]
    assert first == "serve"
    group: Any = typer.main.get_command(cli.app)
    shown = [re.sub(r"\$\{SAGEMAKER_BIND_TO_PORT:-(\d+)\}", r"\1", word) for word in words]
    given = group.commands["serve"].make_context("serve", shown).params
    if where != "SageMaker":  # it has a file of settings
        assert given["key_file"] is not None
        assert given["data_dir"] is not None


def test_the_settings_for_sagemaker_are_settings() -> None:
    config = build_config(ServeConfig, tomllib.loads((ROOT / "deploy/sagemaker.toml").read_text()))
    assert config.sagemaker
    assert config.without_key
    assert config.limits.max_bytes == config.limits.predict_bytes == 2**30


def test_the_image_has_the_releases_that_are_tested() -> None:
    tested = set(PIN.findall((ROOT / "requirements.txt").read_text()))
    files = [(ROOT / f"deploy/requirements-{name}.txt").read_text() for name in ("torch", "onnx")]
    inside = {pin for text in files for pin in PIN.findall(text)}
    torch = set(re.findall(r"\b(torch(?:vision|audio)?)==([^\s;]+)", DOCKERFILE))
    assert len(torch) == 3
    assert (inside | torch) - tested == set()


@pytest.mark.heavy
def test_the_image_has_all_that_the_service_imports_when_it_starts() -> None:
    """Found in the source: what serving and all below it import, and what `cli` needs."""
    pinned = (ROOT / "deploy/requirements-torch.txt").read_text()
    inside = {name for name, _ in PIN.findall(pinned)}
    inside |= {"torch", "torchvision", "torchaudio"}
    package_of = {"multipart": "python-multipart", "yaml": "pyyaml"}
    own = {"cli", "meld", "console", "serving", "fusion", "pipeline"}
    rooms = ("cli", "console.", "serving.", "fusion.prediction.", "fusion.inference.")
    rooms += ("fusion.model.", "pipeline.decode.", "pipeline.encoders.", "pipeline.system.")
    wanted = {
        each.wanted.split(".")[0]
        for each in read_imports(ROOT)
        if each.module.startswith(rooms) and each.at_start and not each.typing_only
        if each.module != "serving.ray_serve"  # Ray's own image
    }
    foreign = wanted - own - set(sys.stdlib_module_names)
    names = {package_of.get(name, name.replace("_", "-")) for name in foreign}
    assert names - inside == set()


def test_shutdown_gives_a_running_job_its_time() -> None:
    least_s = Limits().drain_s + 10
    assert int(COMPOSE["services"]["meld"]["stop_grace_period"].rstrip("s")) >= least_s
    assert pod()["terminationGracePeriodSeconds"] >= least_s
    assert int(unit()["TimeoutStopSec"]) >= least_s


def test_the_proxy_lets_through_what_the_service_takes() -> None:
    [size] = re.findall(r"client_max_body_size (\d+)g;", NGINX)
    assert int(size) * 2**30 >= Limits().max_bytes
    for line in ("proxy_request_buffering off;", "proxy_buffering off;", "Host $http_host;"):
        assert line in NGINX


def test_nothing_in_a_recipe_runs_as_root_but_where_sagemaker_wants_it() -> None:
    assert re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE) == ["10001"]
    assert pod()["securityContext"]["runAsUser"] == 10001
    assert COMPOSE["services"]["meld"]["read_only"] is True
    assert pod()["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True


def test_what_the_image_is_made_of_is_let_into_its_build() -> None:
    let_in = set((ROOT / ".dockerignore").read_text().split())
    for line in re.findall(r"^COPY (?!--from)(?:--\S+ )?(.*) \S+$", DOCKERFILE, re.MULTILINE):
        for name in line.split():
            assert f"!{name.rstrip('/')}" in let_in
            assert (ROOT / name).exists()


def test_the_file_for_kuberay_names_the_application_and_settings_that_it_has() -> None:
    service = yaml.safe_load((ROOT / "deploy/ray-service.yaml").read_text())
    told = yaml.safe_load(service["spec"]["serveConfigV2"])
    [application] = told["applications"]
    assert application["import_path"] == "serving.ray_serve:build"
    pytest.importorskip("aiohttp_cors", reason="ray[serve] is not installed")
    from ray.serve.schema import ServeDeploySchema

    from serving.ray_serve import Settings, build

    ServeDeploySchema.model_validate(told)
    assert Settings(**application["args"]).num_shards == 2
    with pytest.raises(UsageError, match=r"config\.port: it is decided here"):
        build(Settings(**application["args"], config={"port": 9000}))
    tested = dict(PIN.findall((ROOT / "requirements.txt").read_text()))
    assert service["spec"]["rayClusterConfig"]["rayVersion"] == tested["ray"]
