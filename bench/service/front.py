"""Services behind a front on a local Ray, until the standard input ends.

    python -m bench.service.front PORT FOLDER [--model RUN] [--num-shards 2]

Prints a line when it listens. Needs `pip install 'ray[serve]'`.
"""

import argparse
import sys
from pathlib import Path

import ray
from ray import serve

from serving.ray_serve import Settings, build


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--num-shards", type=int, default=2)
    arguments = parser.parse_args()
    config = {} if arguments.model is None else {"model": arguments.model}
    settings = Settings(
        num_shards=arguments.num_shards,
        data_dir=arguments.folder,
        without_key=True,
        config={**config, "limits": {"queued_jobs": 64}},
    )
    # Logical CPUs: one for each service, a tenth for the front, and Ray's own.
    ray.init(num_cpus=arguments.num_shards + 2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": arguments.port})
        serve.run(build(settings), name="meld", route_prefix="/")
        print("listens", flush=True)
        sys.stdin.read()
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
