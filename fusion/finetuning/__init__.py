"""Fine-tuning: encoders and fusion are trained together on raw clips."""
