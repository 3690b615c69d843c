"""Encoders as ONNX graphs: written with PyTorch, read and computed without it."""
