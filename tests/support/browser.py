"""Chromium without a window: what it makes of a page, as a picture and as the elements that it has in the end."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

#: No network, no first-run pages, no sandbox that a container may lack.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
DARK = "--blink-settings=preferredColorScheme=0"
NARROWEST = 500  # pixels: windows of Chromium are not narrower
SECONDS = 120


def screenshot(page: Path, into: Path, *, width: int, height: int, dark: bool = False) -> Image.Image:
    """Return a picture of a page as wide and high as that, and write it into a PNG file."""
    _run(page, f"--screenshot={into}", f"--window-size={width},{height}", *([DARK] if dark else []))
    return Image.open(into).convert("RGB")


def dom(page: Path, *flags: str) -> str:
    """Return the elements that a page has when it is loaded, as HTML."""
    return _run(page, "--dump-dom", *flags)


def pdf(page: Path, into: Path) -> None:
    """Print a page into a PDF file."""
    _run(page, f"--print-to-pdf={into}")


def widths(page: Path, width: int) -> tuple[int, int]:
    """Return how wide the content of a page is in a frame of this width, and how wide the frame is, in pixels."""
    frame = page.with_name(f"frame-{page.name}")
    frame.write_text(
        f'<!doctype html><iframe src="{page.name}" width="{width}" height="800" style="border: 0"></iframe>'
        "<output></output>"
        "<script>onload = () => { const shown = document.querySelector('iframe').contentDocument.documentElement;"
        "document.querySelector('output').textContent = [shown.scrollWidth, shown.clientWidth].join() }</script>"
    )
    found = dom(frame, "--allow-file-access-from-files")
    content, own = found.partition("<output>")[2].partition("</output>")[0].split(",")
    return int(content), int(own)


def _run(page: Path, *flags: str) -> str:
    chromium = shutil.which("chromium")
    assert chromium is not None, "there is no chromium in the path: apt-get install chromium"
    with tempfile.TemporaryDirectory(prefix="chromium-") as profile:  # a new one each time: nothing of before is in it
        command = [chromium, *FLAGS, f"--user-data-dir={profile}", *flags, page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
