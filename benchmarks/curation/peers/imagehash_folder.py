"""Hashes of pictures by Pillow and the `imagehash` package: per line of input, a folder's files in order of name.

`time FOLDER` prints CPU seconds for bytes -> decode + phash12 + colorhash; `colours FOLDER OUT` writes the colour hashes.
"""

import io
import sys
import time
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image

for line in sys.stdin:
    what, folder, *out = line.split()
    files = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    began = time.process_time()
    colours = []
    for data in files:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        if what == "time":
            imagehash.phash(image, hash_size=12)
        colours.append(imagehash.colorhash(image).hash.ravel())
    if what == "colours":
        np.save(out[0], np.array(colours))
    print(time.process_time() - began, flush=True)
