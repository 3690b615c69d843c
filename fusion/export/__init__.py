"""A trained run as one folder to ship: a bundle, its card and the clips it is checked with; and its
fusion model as a graph for other runtimes."""
