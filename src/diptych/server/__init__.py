"""A bundle and an index behind HTTP: the API, the search page, and the page of runs."""
