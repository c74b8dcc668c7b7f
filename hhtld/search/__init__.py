"""Exact search over decoded rows by a proved bound.

A search reads the slots and not the matrix. It estimates the score of every row, keeps those rows whose bound says
that they may be among the best (candidates), and scores these in float64.

`scorer` is what a user holds. `rows` are a tensor's rows made ready to be estimated, `queries` the queries made ready
for them, `bounds` what an estimate may be off by, `candidates` the rows that may still win, and `rescoring` the scores
in float64 that decide.
"""
