"""`perform()` inside somebody's GPU cloud."""
