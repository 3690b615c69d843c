"""The speech recogniser's own process: sound on standard input, words on standard output.

    python -m fusion.inference.whisper FOLDER NUM_THREADS

A process of its own, because CTranslate2 changes the one that it is loaded into: it sets PyTorch's
number of threads, and threads that wait for others keep their cores busy. With two threads on two
busy cores it took 15 times as long (measured: 26 s of speech in 87 s instead of 5.5 s); how threads
wait is settled by the environment, before the library is loaded. And memory that it leaks
(faster-whisper #1055) ends with it.

Each request is a line of JSON (`samples`: how many, `language`: a code or null) and then the
samples as float32; each answer is a line of JSON: a `Recognised`. The first line says which
languages the model knows, or which `error` keeps it from being loaded.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fusion.inference.recogniser import COMPUTE_TYPE, Passage, Recognised, Word, first_line
from pipeline.system.extras import needs_extra


def main() -> None:
    folder, num_threads = Path(sys.argv[1]), int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    try:
        model = load(folder, num_threads)
    except Exception as error:  # noqa: BLE001 - ctranslate2 and tokenizers raise what they like
        _answer(answers, {"error": first_line(error)})
        return
    _answer(answers, {"languages": model.supported_languages})
    requests = sys.stdin.buffer
    while line := requests.readline():
        request = json.loads(line)
        samples = np.frombuffer(requests.read(4 * request["samples"]), np.float32)
        _answer(answers, dataclasses.asdict(recognise(model, samples, request["language"])))


def load(folder: Path, num_threads: int) -> Any:
    with needs_extra("asr"):
        from faster_whisper import WhisperModel

    return WhisperModel(
        str(folder),
        device="cpu",
        compute_type=COMPUTE_TYPE,
        cpu_threads=num_threads,
        local_files_only=True,
    )


def recognise(model: Any, samples: NDArray[np.float32], language: str | None) -> Recognised:
    segments, told = model.transcribe(
        samples,
        language=language if model.model.is_multilingual else "en",
        temperature=0.0,  # above 0 it draws: another run would hear other words
        condition_on_previous_text=False,
        word_timestamps=True,
    )
    detected = language is None and model.model.is_multilingual
    return Recognised(
        passages=tuple(_as_passage(segment) for segment in segments),
        language=told.language,
        language_probability=float(told.language_probability) if detected else None,
    )


def _as_passage(segment: Any) -> Passage:
    return Passage(
        words=tuple(
            Word(
                start_s=float(word.start),
                end_s=float(word.end),
                text=word.word,
                probability=float(word.probability),
            )
            for word in segment.words or ()
        ),
        no_speech=float(segment.no_speech_prob),
        log_probability=float(segment.avg_logprob),
        compression=float(segment.compression_ratio),
    )


def _answer(answers: BinaryIO, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    main()
