"""A browser opens a report: light, dark, narrow and printed. A label that looks like markup is text in it."""

from pathlib import Path

import pypdf
import pytest
from PIL import Image, ImageStat

from tests.conftest import World
from tests.report.page.test_page import EVIL, evil, html
from tests.support import browser
from tests.support.pages import read

pytestmark = pytest.mark.browser
world_on_sqlite = pytest.mark.parametrize("world", ["SQLite"], indirect=True)


@pytest.fixture
def page(world: World) -> Path:
    """A page whose labels, keys and texts look like markup."""
    path = world.folder / "page.html"
    path.write_text(html(world, evil(world)), encoding="utf-8")
    return path


def brightness(picture: Image.Image) -> float:
    """How bright a picture is: 0 black, 255 white."""
    return float(ImageStat.Stat(picture.convert("L")).mean[0])


@world_on_sqlite
def test_a_label_that_looks_like_markup_is_visible_text(page: Path) -> None:
    shown = read(browser.dom(page))

    assert EVIL in shown.text
    assert {"svg", "script"} & {tag for tag, _ in shown.elements} == set()
    assert "\u241b[31m" in shown.text


@world_on_sqlite
def test_its_policy_lets_no_script_run_even_if_one_got_onto_it(page: Path) -> None:
    broken = page.with_name("broken.html")
    script = "<script>document.body.innerHTML = 'scripts run'</script><img src=x onerror=\"document.title = 'too'\">"
    broken.write_text(page.read_text(encoding="utf-8").replace("<footer>", f"{script}<footer>"), encoding="utf-8")

    shown = read(browser.dom(broken))

    assert "answered" in shown.text
    assert "scripts run" not in shown.text.replace("innerHTML = 'scripts run'", "")


@world_on_sqlite
def test_it_is_light_or_dark_as_the_reader_likes_it(page: Path) -> None:
    light = browser.screenshot(page, page.with_suffix(".light.png"), width=1100, height=1600)
    dark = browser.screenshot(page, page.with_suffix(".dark.png"), width=1100, height=1600, dark=True)

    assert brightness(light) > 200
    assert brightness(dark) < 60
    assert max(dark.convert("L").tobytes()) > 200  # its text is light


@world_on_sqlite
@pytest.mark.parametrize("width", [400, 768, 1400])
def test_nothing_is_wider_than_the_window(page: Path, width: int) -> None:
    content, window = browser.widths(page, width)

    assert window == width
    assert content == window


@world_on_sqlite
def test_it_can_be_printed(page: Path) -> None:
    browser.pdf(page, page.with_suffix(".pdf"))

    pages = pypdf.PdfReader(page.with_suffix(".pdf")).pages
    assert len(pages) <= 4
    assert "rows are answered" in pages[0].extract_text()
