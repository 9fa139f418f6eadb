"""What pages looked like, as perceptual hashes: text, which a change of fonts hardly moves, and another page does.

To write them anew from pictures that one has looked at: RRN_SCREENSHOTS=FOLDER pytest tests/test_browser.py, then
python tests/screens.py FOLDER.
"""
import json
import sys
from pathlib import Path
import imagehash
from PIL import Image

SCREENS = Path(__file__).with_name('screens.json')
REFERENCES = json.loads(SCREENS.read_text())      # name of a screenshot -> its hash
SIDE = 16                                         # so many rows and columns of frequencies: 256 bits
LIMIT = 64                                        # bits that may differ; half of them do between any two pages


def hash_of(path) -> imagehash.ImageHash:
    return imagehash.phash(Image.open(path).convert('RGB'), hash_size=SIDE)


def differing_bits(path, name: str) -> int:
    "How many of the 256 bits of a screenshot are not those of its reference."
    return int(hash_of(path) - imagehash.hex_to_hash(REFERENCES[name]))


if __name__ == '__main__':
    found = {name: str(hash_of(Path(sys.argv[1])/f'{name}.png')) for name in REFERENCES}
    SCREENS.write_text(json.dumps(found, indent=1) + '\n')
