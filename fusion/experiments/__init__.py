"""Many trainings compared: cross-validation, ablation, two runs, the demo."""
