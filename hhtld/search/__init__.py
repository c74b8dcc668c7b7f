"""Exact search over decoded rows by a proved bound."""
