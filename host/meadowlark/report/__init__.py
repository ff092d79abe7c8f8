"""Reports for people: one HTML file, with pictures in it and nothing to fetch."""
