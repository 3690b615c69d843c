"""Experiments with several trainings: cross-validation, ablation, comparison of two runs, the
demo."""
