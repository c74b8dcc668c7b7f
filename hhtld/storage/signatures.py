"""What a file that was not recognised probably is, by its first bytes."""

from __future__ import annotations

__all__ = ["lookalike"]

# What files that were mistaken for a model begin with, lower-cased, and what to do about it.
_LOOKALIKES = (
    (b"version https://git-lfs", "this is a Git LFS pointer: fetch the file itself with `git lfs pull`"),
    (b"<!doctype html", "this is an HTML page, probably an error page saved by a download"),
    (b"<html", "this is an HTML page, probably an error page saved by a download"),
    (b"gguf", "this is a GGUF file"),
    (b"pk\x03\x04", "this is a zip archive, as torch.save writes: convert it to safetensors first"),
    (b"\x80", "this looks like a pickle (.pt, .bin): convert it to safetensors first"),
    (b"\x89hdf", "this is an HDF5 file"),
    (b"\x93numpy", "this is a .npy file"),
)


def lookalike(head: bytes) -> str:
    """Return a hint at what a file that was not recognised is, from its first bytes, or ""."""
    lowered = head.lower().lstrip(b" \t\r\n")
    return next((hint for prefix, hint in _LOOKALIKES if lowered.startswith(prefix)), "")
