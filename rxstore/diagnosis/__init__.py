"""``rxstore diagnose``: what is wrong, where, what it means for patients, and the command that helps.

Read findings.py (every kind of finding, in one list), then look.py (the order in which everything is looked at).
"""
