"""A media file to sampled frames and a mono waveform. The only home of a decoder."""
