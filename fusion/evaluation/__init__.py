"""What a run is worth: scores, intervals, calibration, leakage, errors."""
