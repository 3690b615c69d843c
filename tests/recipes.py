"""The recipes of docs/deploy.md, read by the tools that know their formats (`make check`).

    python tests/recipes.py

Each tool checks where it is installed, beside this Python or on the PATH, and is named where it is
not (CONTRIBUTING.md says how to get them). Ends with status 1 where one finds something.
"""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]

COMPOSE = (
    "import sys, yaml; from compose_spec import ComposeSpecification;"
    "ComposeSpecification.model_validate(yaml.safe_load(open(sys.argv[1])))"
)
# Ray's schema ignores names that it does not know.
SERVE = """
import sys, yaml
from ray.serve.schema import HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema
told = yaml.safe_load(open(sys.argv[1]))
ServeDeploySchema.model_validate(told)
parts = [(told, ServeDeploySchema), (told.get("http_options", {}), HTTPOptionsSchema)]
parts += [(each, ServeApplicationSchema) for each in told["applications"]]
unknown = [name for part, schema in parts for name in part if name not in schema.model_fields]
sys.exit(f"unknown: {', '.join(unknown)}" if unknown else 0)
"""


def as_it_is(text: str) -> str:
    return text


def pods_of(text: str) -> str:
    """What a RayService says of its pods, as templates: the rest of it is the operator's."""
    cluster = yaml.safe_load(text)["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return yaml.safe_dump_all(
        {
            "apiVersion": "v1",
            "kind": "PodTemplate",
            "metadata": {"name": f"group-{number}"},
            "template": group["template"],
        }
        for number, group in enumerate(groups)
    )


def applications_of(text: str) -> str:
    config: str = yaml.safe_load(text)["spec"]["serveConfigV2"]
    return config


def on_this_machine(text: str) -> str:
    """nginx looks the service's name up, which is one of compose's network alone."""
    return text.replace("server meld:8000;", "server 127.0.0.1:8000;")


def with_a_program(text: str) -> str:
    """systemd looks whether what it is to start is there."""
    return text.replace("/opt/meld/bin/meld", sys.executable)


@dataclass(frozen=True, kw_only=True)
class Check:
    """
    tool:     a command
    arguments: before the file
    file:     below the root
    part:     what of it the tool reads
    needs:    modules of this Python, where the tool is one of them
    """

    tool: str
    file: str
    arguments: Sequence[str] = ()
    part: Callable[[str], str] = as_it_is
    needs: Sequence[str] = ()


CHECKS = (
    Check(tool="hadolint", file="Dockerfile"),
    Check(tool="cfn-lint", file="deploy/sagemaker.yaml"),
    Check(tool="kubernetes-validate", arguments=["--strict"], file="deploy/kubernetes.yaml"),
    Check(
        tool="kubernetes-validate",
        arguments=["--strict"],
        file="deploy/ray-service.yaml",
        part=pods_of,
    ),
    Check(
        tool="check-jsonschema",
        arguments=["--builtin-schema", "vendor.compose-spec"],
        file="compose.yaml",
    ),
    Check(
        tool="compose-spec", arguments=["-c", COMPOSE], file="compose.yaml", needs=["compose_spec"]
    ),
    Check(
        tool="ray[serve]",
        arguments=["-c", SERVE],
        file="deploy/ray-service.yaml",
        part=applications_of,
        # Of its extra; where one is missing, the schema cannot be imported.
        needs=["ray.serve", "aiohttp_cors", "grpc_reflection"],
    ),
    Check(
        tool="nginx", arguments=["-t", "-q", "-c"], file="deploy/nginx.conf", part=on_this_machine
    ),
    Check(
        tool="systemd-analyze",
        arguments=["verify"],
        file="deploy/meld.service",
        part=with_a_program,
    ),
)


def find_tool(check: Check) -> str | None:
    if check.needs:
        return sys.executable if all(map(is_installed, check.needs)) else None
    beside = Path(sys.executable).parent / check.tool
    return str(beside) if beside.exists() else shutil.which(check.tool)


def is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of what it is a part of
        return False


@contextmanager
def part_of(check: Check) -> Iterator[Path]:
    """The file itself, or one of its name that holds the part."""
    path = ROOT / check.file
    text = path.read_text()
    part = check.part(text)
    if part == text:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_text(part)
        yield copy


def run(check: Check, tool: str) -> tuple[bool, str]:
    """Whether it is good, and what the tool says."""
    with part_of(check) as path:
        done = subprocess.run(
            [tool, *check.arguments, path], cwd=ROOT, capture_output=True, text=True
        )
        # systemd-analyze only warns of a value that systemd would ignore.
        is_good = done.returncode == 0 and str(path) not in done.stderr
    return is_good, f"{done.stdout}\n{done.stderr}"


def main() -> int:
    status = 0
    for check in CHECKS:
        tool = find_tool(check)
        if tool is None:
            print(f"{check.tool} is not installed: it does not check {check.file}")
            continue
        is_good, said = run(check, tool)
        print(f"{check.tool} on {check.file}: {'good' if is_good else 'not good'}")
        if not is_good:
            print(said, file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
