"""Folds events into read models.

Read prescription.py (what an event means), stream.py (what may fold, what waits and what blocks), projection.py
(what a batch means), then runner.py (one batch, one transaction). The first three do no I/O.
"""
