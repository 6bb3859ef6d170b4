"""Steps 5 and 6 of the data walk."""
