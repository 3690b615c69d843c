"""The small model that the package carries (`meld-text/`), and how it is made."""
