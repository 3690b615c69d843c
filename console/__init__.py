"""What the commands share: options, settings, progress and printed results."""
