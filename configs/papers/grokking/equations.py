"""Writes all equations x / y = z modulo p as pairs of text files, split at random.

    python configs/papers/grokking/equations.py runs/equations

runs/equations/train.x and val.x hold lines such as "一/丁=", train.z and val.z their
answers; a number is one letter.
"""

import argparse
import pathlib
import random

_FIRST = 0x4E00  # the letter of 0; 20,000 letters follow


def main() -> None:
    """Reads the arguments and writes the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--modulus", type=int, default=97, metavar="P", help="a prime")
    parser.add_argument("--train_fraction", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not 0 < args.train_fraction < 1:
        parser.error(f"--train_fraction {args.train_fraction}: expected 0 < share < 1")
    write(args.folder, args.modulus, args.train_fraction, args.seed)


def write(folder: pathlib.Path, p: int, train_fraction: float, seed: int) -> None:
    """Writes train.x, train.z, val.x and val.z."""
    equations = [(z * y % p, y, z) for y in range(1, p) for z in range(p)]
    random.Random(seed).shuffle(equations)
    count = round(train_fraction * len(equations))
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", equations[:count]), ("val", equations[count:])):
        inputs = (f"{_letter(x)}/{_letter(y)}=\n" for x, y, _ in part)
        answers = (f"{_letter(z)}\n" for _, _, z in part)
        (folder / f"{name}.x").write_text("".join(inputs), encoding="utf-8")
        (folder / f"{name}.z").write_text("".join(answers), encoding="utf-8")


def _letter(number: int) -> str:
    return chr(_FIRST + number)


if __name__ == "__main__":
    main()
