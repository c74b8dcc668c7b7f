"""Bytes here and behind URLs: read by position, written so that nobody ever sees half of a file."""
