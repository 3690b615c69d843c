"""Evaluation of runs: scores, intervals, calibration, leakage, error analysis."""
