"""What HTML pages share: their frame, and stills of clips."""
