"""The development guide, line by line; quoting.py tells how."""
