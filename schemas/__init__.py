"""The contracts, under all three packages: what events mean, and how answers are dressed.

Read events.py (the facts), contract.py (the rules they keep), incoming.py (how both meet), then vocabulary.py and
outgoing.py (the answers). Nothing here does I/O.
"""
