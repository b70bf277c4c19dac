"""The pages as a site: it builds without a warning, every page is in it, and it asks nobody else for anything."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs_pages import PAGES, ROOT

# What a browser fetches by itself, as tag and attribute.
FETCHED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("link", "href")}
FETCHING_LINKS = {"stylesheet", "icon", "preload", "preconnect", "dns-prefetch", "modulepreload"}


class Page(HTMLParser):
    """What a page of the site fetches, links to, and can be linked at."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag asks for."""
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and given.get("rel") not in FETCHING_LINKS:
            return
        self.fetched += [given[name] for name in given if (tag, name) in FETCHED]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the built site; a build that could reach a network would not get through this proxy."""
    folder = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:1")

    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"},
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "" == done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> list[Page]:
    """Give the pages of the site."""
    return [Page(path) for path in site.rglob("*.html") if path.name != "404.html"]


@pytest.mark.slow
class TestSite:
    def test_every_page_is_in_it(self, pages: list[Page], site: Path) -> None:
        """The site has the repository's own paths, and the README is its front page."""
        expected = {name.removesuffix(".md").replace("README", "index") + ".html" for name in PAGES}

        assert expected == {page.path.relative_to(site).as_posix() for page in pages}

    def test_every_page_is_in_the_navigation(self, pages: list[Page], site: Path) -> None:
        """Each page can be reached from the front page's menu."""
        (front,) = (page for page in pages if page.path == site / "index.html")

        assert {page.path.relative_to(site).as_posix() for page in pages} <= {*front.links, "index.html"}

    def test_nothing_is_fetched_from_elsewhere(self, pages: list[Page], site: Path) -> None:
        """No font, script, style or picture comes from another host, so nobody learns who reads what."""
        fetched = [(page, address) for page in pages for address in page.fetched]
        in_styles = [
            (path, address)
            for path in site.rglob("*.css")
            for address in re.findall(r"url\(\s*[\"']?([^\"')]+)", path.read_text(encoding="utf-8"))
        ]

        assert [] == [(page.path.name, address) for page, address in fetched if is_elsewhere(address)]
        assert [] == [(path.name, address) for path, address in in_styles if is_elsewhere(address)]
        assert all((page.path.parent / urlsplit(address).path).is_file() for page, address in fetched)

    def test_every_link_leads_somewhere(self, pages: list[Page]) -> None:
        """A link within the site finds its file, and its heading there."""
        anchors = {page.path: page.anchors for page in pages}
        broken = [
            (page.path.name, link) for page in pages for link in page.links if not leads(page.path, link, anchors)
        ]

        assert [] == broken

    def test_the_api_is_filled_in(self, site: Path) -> None:
        """What the page about the API names is there with its signature."""
        page = Page(site / "docs/api.html")

        assert {"orchestra.orchestra.Orchestra.submit", "orchestra.exceptions.handle_retry_logic"} <= page.anchors
        assert ":::" not in page.path.read_text(encoding="utf-8").replace("<code>:::</code>", "")


def is_elsewhere(address: str) -> bool:
    """Tell whether an address leads out of the site."""
    return bool(urlsplit(address).netloc)


def leads(page: Path, link: str, anchors: dict[Path, set[str]]) -> bool:
    """Tell whether a link leads to a file of the site, and to an anchor in it; others' sites aren't asked."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    return target.is_file() and (not parts.fragment or unquote(parts.fragment) in anchors.get(target, set()))
