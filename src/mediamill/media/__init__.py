"""Toolbox for media, without jobs or HTTP."""
