"""Structured hostile inputs for everything that edgeattn reads: each is replayed by its kind, seed and index.

``python -m tests.attacks --count 20000 --seed 1`` is the long run, pytest runs a slice of it. A generator
(:mod:`tests.attacks.kinds`) takes something whole and changes it where its structure is, so that the change gets past
the first check; one oracle (:mod:`tests.attacks.worker`) holds the outcome of every kind: success, a failed gate, or
one printable line of at most 4,000 characters with exit code 2, 3 or 4; in bounded time and memory; no code run, no
file outside.
"""
