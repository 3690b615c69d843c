"""The late-fusion model: features of each modality in, logits of both heads out."""
