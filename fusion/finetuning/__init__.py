"""Encoders and fusion trained together on raw clips."""
