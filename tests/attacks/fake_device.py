"""What a link finds at its other end in an attack: it plays what it was given and reads what it is sent.

Arguments: a file of JSON, and the shell command that a real device would run, which holds the nonce. The file:
``play``, texts in which ``@NONCE@`` stands for it (as latin-1, so that any byte can be), ``endless``, a text that is
repeated until nobody reads it any more, and ``stays``, whether it lives until it is left.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123 - starts faster without pathlib
        given = json.load(file)
    nonce = re.search(r" edgeattn '?([0-9a-f]{32})", sys.argv[2])
    mark = nonce[1] if nonce else "0" * 32

    def drain() -> None:
        while os.read(0, 65536):
            pass
        os._exit(0)

    threading.Thread(target=drain, daemon=True).start()
    for text in given["play"]:
        left = text.replace("@NONCE@", mark).encode("latin-1")
        while left:
            left = left[os.write(1, left) :]
    while given["endless"]:
        os.write(1, given["endless"].replace("@NONCE@", mark).encode("latin-1"))
    if given["stays"]:
        threading.Event().wait(20.0)


if __name__ == "__main__":
    main()
