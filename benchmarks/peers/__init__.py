"""
Task queues for Python and Redis side by side, each with processes and an environment of its own.

What stands in `apps`, `tally`, `work` and `producer` is run by the interpreter of the system that is measured, and so
needs nothing but Python and that system.
"""
