"""A simple service as in tutorials: it loads the model at start; its handler saves the upload to a
temporary file and calls the model.

    python -m bench.service.peer PORT [--model RUN]
"""

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, UploadFile

from fusion.inference.load import ModelChoice
from fusion.inference.predict_media import WordsConfig
from fusion.prediction.one_file import predict_file
from pipeline.decode.process import HERE


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--model", type=Path)
    arguments = parser.parse_args()
    predictor = ModelChoice(run=arguments.model).load()
    app = FastAPI()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/predict")
    async def predict(file: UploadFile) -> dict[str, Any]:
        with tempfile.NamedTemporaryFile(suffix=".mp4") as saved:
            shutil.copyfileobj(file.file, saved)
            saved.flush()
            result = predict_file(Path(saved.name), WordsConfig(), predictor, HERE)
        if result.timeline is None:
            raise RuntimeError(str(result.error))
        return result.timeline.to_dict()

    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
