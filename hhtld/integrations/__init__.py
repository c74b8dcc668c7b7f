"""Doors to other libraries. Nothing here is imported by the rest of hhtld; each door loads its library on first use."""
