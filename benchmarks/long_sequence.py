"""How long a long sequence takes to convert and verify: a two-layer encoder whose tokens see a window of 512.

    python -m benchmarks.long_sequence [--tokens 8192] [--target cpu ...]

One line per target: seconds of ``edgeattn convert`` in a process of its own, its largest resident size, and its end.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FACTORY = '''\
"""A mask made in forward, as people write it."""
import torch
from torch import nn


class Layer(nn.Module):
    def __init__(self, dim=32, heads=2):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        place = torch.arange(t, device=x.device)
        apart = place[:, None] - place[None]
        seen = (apart >= 0) & (apart < 512)
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return x + self.out(y.transpose(1, 2).flatten(2))


def model():
    torch.manual_seed(0)
    return nn.Sequential(Layer(), Layer()), {{"input": torch.randn(1, {tokens}, 32)}}
'''


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--target", action="append")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "encoder.py"
        source.write_text(FACTORY.format(tokens=asked.tokens))
        for target in asked.target or ["cpu"]:
            options = ["--target", target, "--precision", "fp32", "--out", str(Path(directory) / target)]
            command = [sys.executable, "-m", "edgeattn", "convert", str(source), *options]
            began = time.monotonic()
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            assert process.stderr is not None
            said = process.stderr.read().strip().splitlines()
            _, status, usage = os.wait4(process.pid, 0)
            code, seconds = os.waitstatus_to_exitcode(status), time.monotonic() - began
            end = "converted" if code == 0 else f"exit code {code}: {said[-1] if said else ''}"
            print(
                f"{target}: {asked.tokens} tokens, {seconds:.1f} s ({usage.ru_utime + usage.ru_stime:.1f} s of "
                f"processor time), {usage.ru_maxrss / 2**20:.2f} GiB, {end}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
