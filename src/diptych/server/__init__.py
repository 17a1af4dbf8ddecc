"""HTTP server for a bundle and an index: the API, the search page, and the page that shows training runs."""
