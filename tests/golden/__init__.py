"""A log and what it folded to when the definition was last raised; ``python -m tests.golden.write`` writes both."""
