"""Random small attention programs, converted for every engine and compared with torch on adversarial inputs.

``python -m tests.fuzz --count 1000 --seed 1`` is the long run, pytest runs a slice of it. A program
(:mod:`tests.fuzz.programs`) is plain data: parts by name with their numbers. The oracle (:mod:`tests.fuzz.oracle`) is
torch on the program itself, and how far torch moves when every operation rounds otherwise says what an engine may
differ by. What preflight refuses, or conversion stops, is no wrong number; what ships must be right.
"""
