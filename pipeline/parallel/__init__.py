"""Work on clips through Ray."""
