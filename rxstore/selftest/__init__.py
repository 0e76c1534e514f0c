"""Seeded chaos against a user's own servers, and the comparison of what is left with the pure fold of the log.

Read statements.py (what a worker says to PostgreSQL), schedule.py (what a seed means), proxy.py (the wires that can
break), workers.py (processes that can be killed), trial.py (one seed), truth.py (what must be there in the end),
scratch.py (databases and topics of its own), then run.py (all seeds).

Nothing here is known to the code that it tests: every fault comes from outside.
"""
