"""``python -m tests.attacks --count 20000 --seed N [--kind K]``: the long run; ``--index I`` replays one attack."""

from __future__ import annotations

import argparse
import collections
import sys
import time

from tests.attacks.kinds import KINDS
from tests.attacks.run import run

SHARES = {**dict.fromkeys(("onnx", "ort", "tflite", "pt2", "device"), 0.5), "graph": 1.0}
"""Of an even share: slower, and each kind is many."""


def main() -> int:
    """Print what each kind came to, every problem first; 1 if there was one."""
    parser = argparse.ArgumentParser(prog="python -m tests.attacks")
    parser.add_argument("--count", type=int, default=20_000, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=sorted(KINDS), help="may be repeated; all, if not given")
    parser.add_argument("--index", type=int, help="this one alone")
    asked = parser.parse_args()
    kinds = asked.kind or list(KINDS)
    weights = {kind: SHARES.get(kind, 1.0) if asked.kind is None else 1.0 for kind in kinds}
    problems = 0
    for kind in kinds:
        count = 1 if asked.index is not None else round(asked.count * weights[kind] / sum(weights.values()))
        began, codes, slowest = time.monotonic(), collections.Counter[int](), 0.0
        for outcome in run(kind, asked.seed, asked.index or 0, count):
            codes[outcome.code] += 1
            slowest = max(slowest, outcome.seconds)
            if outcome.problem or asked.index is not None:
                problems += bool(outcome.problem)
                print(f"--kind {kind} --seed {outcome.seed} --index {outcome.index}: {outcome.problem}", flush=True)
                print("    " + outcome.said.strip()[-1_500:].replace("\n", "\n    "), flush=True)
        ends = ", ".join(f"{number} x exit {code}" for code, number in sorted(codes.items()))
        print(f"{kind:12} {sum(codes.values()):6} ({ends}), slowest {slowest:.1f} s, {time.monotonic() - began:.0f} s",
              flush=True)  # fmt: skip
    print(f"{problems} problems")
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main())
