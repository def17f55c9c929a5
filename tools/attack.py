"""All attacks of tests/attacks.py in full: adapter files, interrupts at every line, two
threads, damaged and killed checkpoints.

    python tools/attack.py [files] [seed]      # default: 20000 0

Ends with status 1 if anything went wrong. The suite runs a few hundred of each.
"""

import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests import attacks


def main(argv):
    cases, seed = (int(a) for a in (*argv, *("20000", "0")[len(argv) :]))
    torch.set_num_threads(1)
    wrong = 0

    def told(what, bad, count, more=""):
        nonlocal wrong
        wrong += len(bad)
        print("\n".join(bad[:40]))
        print(f"{what}: {count} cases{more}, {len(bad)} wrong", flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        told("interrupts", *attacks.attack_interrupts(folder, say=print))
        told("two threads", *attacks.attack_threads(200, folder))
        told("checkpoints", *attacks.attack_checkpoints(1500, 60, folder))
        bad, count, refused = attacks.attack_files(cases, seed, folder, print)
        told("files", bad, count, f", {refused} refused")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
