"""The report of a sweep or a study as one HTML page that needs no network."""
