"""The commands, one module each: parse, call, print.

main.py lists them all, options.py holds what they share. A command's module is imported when it runs, and imports
what is slow to load inside its function, so that ``rxstore --help`` is there at once.
"""
