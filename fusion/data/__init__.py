"""One split of a feature cache as whole tensors."""
