"""ONNX Runtime, told to send no usage events: from 1.32 on it does so by default, also on Linux."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when the library is loaded

import onnxruntime

onnxruntime.disable_telemetry_events()

__all__ = ["onnxruntime"]
