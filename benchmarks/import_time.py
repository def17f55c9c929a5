"""How much longer `import hra` takes than `import torch`: medians of interleaved fresh
processes, as a ratio.

python -m benchmarks.import_time [rounds]
"""

import statistics
import subprocess
import sys
import time


def seconds(code: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - begun


if __name__ == "__main__":
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    seconds("import hra")  # warms the disk cache
    pairs = [(seconds("import torch"), seconds("import hra")) for _ in range(rounds)]
    torch_, hra_ = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"import torch {torch_:.2f} s, import hra {hra_:.2f} s, ratio "
        f"{hra_ / torch_:.2f} ({rounds} rounds)"
    )
