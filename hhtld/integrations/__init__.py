"""Doors to other libraries: torch, transformers and dask. Each loads its library when it is first used."""
