"""`meld predict` behind a door: jobs over HTTP, and a page. FastAPI lives here and nowhere else."""
