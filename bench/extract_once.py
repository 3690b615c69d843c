"""Runs one extraction in a new process: python -m bench.extract_once DATA FEATURES TEXT_FOLDER.

Prints a JSON list of [monotonic seconds, rows done]. Weights are random (the speed is the same).
"""

import json
import sys
import time
from pathlib import Path

from pipeline.encoders.choice import EncoderRequest
from pipeline.extract.extract import ExtractConfig, extract


def main() -> None:
    data, features, text_folder = sys.argv[1:4]
    marks: list[tuple[float, int]] = []
    encoders = EncoderRequest(text=text_folder, text_weights="random", video_weights="random")
    extract(
        ExtractConfig(data=Path(data), features=Path(features), encoders=encoders),
        lambda done, *_: marks.append((time.monotonic(), done)),
    )
    print(json.dumps(marks))


if __name__ == "__main__":
    main()
