"""`meld serve`: predictions over HTTP, and a page. FastAPI is used in this package only."""
