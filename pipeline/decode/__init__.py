"""Decoding: media files -> sampled frames and mono waveforms. Decoders are used in this package
only."""
