"""`python -m orchestra`: the command of `orchestra.cli`."""

from orchestra.cli import main

if __name__ == "__main__":
    main()
