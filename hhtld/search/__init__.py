"""Exact search over decoded rows by a proved bound.

A search reads the slots and not the matrix. It estimates the score of every row, keeps those rows whose bound says
that they may be among the best (candidates), and scores these in float64.

`scorer` is what a user holds. `queries` makes queries ready for a tensor's rows, `estimates` estimates scores without
decoding rows, `bounds` says what an estimate may be off by, `candidates` keeps the rows that may still win, and
`rescoring` computes the scores in float64 that decide. `linear_layers` has no part in this: it multiplies the few
inputs of a model's layer with all rows.
"""
