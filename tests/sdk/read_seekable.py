"""Reads an image as any seekable-zstd reader would: FILE RAW. Fails unless all places give the raw bytes."""

import random
import sys

from pyzstd import SeekableZstdFile

path, raw_path = sys.argv[1:]
with open(raw_path, "rb") as file:
    raw = file.read()
places = random.Random(1)
with SeekableZstdFile(path, "r") as image:
    for _ in range(100):
        at, length = places.randrange(len(raw)), places.randrange(100_000)
        image.seek(at)
        assert image.read(length) == raw[at : at + length], at
    image.seek(0)
    assert image.read() == raw
