"""A trained run as one folder to ship: a bundle, its card and the clips it is checked with."""
