"""The mark and the length of invented texts."""

import re

MARK = "[emulated]"
GIST_CHARACTERS = 160
SENTENCE = re.compile(r"[.!?]\s")
