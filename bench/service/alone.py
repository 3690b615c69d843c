"""`meld predict` without start-up: a process with a loaded model that predicts given files.

    python -m bench.service.alone [--model RUN] < lines > lines

A line of input is a JSON list of paths; its answer is the seconds that all of them took.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from fusion.inference.load import ModelChoice
from fusion.inference.predict_media import WordsConfig
from fusion.prediction.one_file import predict_file
from pipeline.decode.process import DecoderProcess


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    predictor = ModelChoice(run=parser.parse_args().model).load()
    with DecoderProcess() as decoder:
        for line in sys.stdin:
            began = time.perf_counter()
            for path in json.loads(line):
                result = predict_file(Path(path), WordsConfig(), predictor, decoder)
                if result.error is not None:
                    raise result.error
            print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
