"""Recorded updates of seven editors on one tiny fixed model, and the plain float64 NumPy code that makes them.

The code here is written from the papers' equations and shares nothing with `editors`: it has its own tokenisation, forward
and backward pass, Adam and closed forms, and takes one unpadded row at a time. `python -m tests.goldens.make` records the
updates anew; `tests/editors/test_goldens.py` holds our editors against them. All goldens together stay below 1 MB.
"""
