"""Commands that measure the system against real servers (docs/performance.md). Each says what it can: ``--help``."""
