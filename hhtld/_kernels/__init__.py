"""Compiled kernels: pointers and shapes; no names, files, policy, allocation or threads."""
