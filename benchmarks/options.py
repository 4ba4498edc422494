"""What the model benchmarks have in common on their command lines."""

from __future__ import annotations

import argparse

import torch

from benchmarks.geometries import GEOMETRIES

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def parser(description: str | None, rounds: int, *, geometry: bool = True) -> argparse.ArgumentParser:
    """Options for the network, the precision, threads of torch, and how often things are timed."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if geometry:
        result.add_argument("--geometry", choices=sorted(GEOMETRIES), required=True, help="the paper's network")
    result.add_argument("--skip", action="store_true", help="with skip connection")
    result.add_argument("--precision", choices=sorted(PRECISIONS), default="fp32", help="[%(default)s]")
    result.add_argument("--threads", type=count, default=torch.get_num_threads(), help="of torch [%(default)s]")
    result.add_argument("--rounds", type=count, default=rounds, help="times that each step runs [%(default)s]")
    return result


def count(text: str) -> int:
    """A number of 1 or more, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
