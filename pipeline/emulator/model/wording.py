"""How what is made up looks: marked, and short."""

import re

MARK = "[emulated]"
GIST_CHARACTERS = 160
SENTENCE = re.compile(r"[.!?]\s")
