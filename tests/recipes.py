"""The recipes of docs/deploy.md, read by the tools that know their formats (`make check`).

    python tests/recipes.py

Each tool checks where it is installed, and is named where it is not (CONTRIBUTING.md says how to
get them). Ends with status 1 where one finds something.
"""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

COMPOSE = (
    "import sys, yaml; from compose_spec import ComposeSpecification;"
    "ComposeSpecification.model_validate(yaml.safe_load(open(sys.argv[1])))"
)
# Tool -> its arguments; a module of Python is run by this one.
TOOLS = {
    "hadolint": ("Dockerfile",),
    "cfn-lint": ("deploy/sagemaker.yaml",),
    "kubernetes-validate": ("deploy/kubernetes.yaml",),
    "compose_spec": ("-c", COMPOSE, "compose.yaml"),
}


def find_tool(name: str) -> str | None:
    """Beside this Python, or on the PATH."""
    if name.isidentifier() and importlib.util.find_spec(name) is not None:
        return sys.executable
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


def main() -> int:
    status = 0
    for name, arguments in TOOLS.items():
        tool = find_tool(name)
        if tool is None:
            print(f"{name} is not installed: {arguments[-1]} is not checked")
            continue
        done = subprocess.run([tool, *arguments], cwd=ROOT, capture_output=True, text=True)
        print(f"{name} on {arguments[-1]}: {'good' if done.returncode == 0 else 'not good'}")
        if done.returncode != 0:
            print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
