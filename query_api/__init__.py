"""From rows to the tracker's answers.

Read app.py (every route), resources.py (what a client can name), then queries.py (one SELECT a question).
"""
