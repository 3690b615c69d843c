"""The bundled model (`meld-text/`), and the script that makes it."""
