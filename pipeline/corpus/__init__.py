"""MELD's annotations and where its clips lie."""
