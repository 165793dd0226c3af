"""The steps of convert, in the order of its docstring, each on its own."""
