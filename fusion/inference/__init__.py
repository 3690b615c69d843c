"""A trained run and what it predicts: reading it needs numpy, torch and safetensors alone."""
