"""K entries of gᵀx: one by one, or from the dense product? The density at which the two
cost the same.

    python -m benchmarks.sampled [--rounds 15]

Interleaved medians, one process, two threads; a ratio above 1 says that the dense
product is cheaper.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from tqdm.auto import tqdm

from hra import masks, sparse

SHAPES = (
    (1024, 768, 256),
    (1024, 256, 1024),
    (512, 2304, 768),
    (512, 768, 3072),
    (1024, 4096, 4096),
)
DENSITIES = (0.001, 0.01, 0.03, 0.05, 0.1, 0.2, 0.4)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(2)
    rows = {}
    for tokens, d_out, d_in in tqdm(SHAPES, desc="shapes"):
        g, x = torch.randn(tokens, d_out), torch.randn(tokens, d_in)
        for p in DENSITIES:
            index = masks.rand(
                d_out,
                d_in,
                masks.budget(d_out, d_in, p),
                torch.Generator().manual_seed(0),
            )
            i, j, ratios = index // d_in, index % d_in, []
            for _ in range(args.rounds if d_out < 4096 else 3):
                times = []
                for dense_from in (2.0, 0.0):
                    begin = time.perf_counter()
                    sparse.sampled_product(g, x, i, j, dense_from)
                    times.append(time.perf_counter() - begin)
                ratios.append(times[0] / times[1])
            rows[tokens, d_out, d_in, p] = statistics.median(ratios)
    print("one by one / dense    " + "".join(f"{p:>9.1%}" for p in DENSITIES))
    for tokens, d_out, d_in in SHAPES:
        print(
            f"T {tokens:>5}, {d_out:>4} x {d_in:<6}"
            + "".join(f"{rows[tokens, d_out, d_in, p]:>9.2f}" for p in DENSITIES)
        )


if __name__ == "__main__":
    main()
