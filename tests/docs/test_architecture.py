"""docs/architecture.md names what there is: every room, and no file that is not there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_every_room_has_its_line() -> None:
    rooms = {path.parent.name for path in (ROOT / "pipeline").glob("*/__init__.py")}

    assert rooms <= set(re.findall(r"`(\w+)/`", TEXT))


def test_every_module_it_names_is_there() -> None:
    named = re.findall(r"`([\w/]+\.py)`", TEXT)
    files = [
        str(path.relative_to(ROOT)) for room in ("pipeline", "flows", "tests") for path in (ROOT / room).rglob("*.py")
    ]

    assert len(named) > 20
    assert [name for name in named if not any(file.endswith("/" + name) for file in files)] == []
