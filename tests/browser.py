"""Pages in Chromium, which has nothing to say about them."""

import json
import os
import re
import shutil
import subprocess
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ, reason="no Chromium; `apt-get install chromium` on Debian"
)
FRAME = """<iframe src="measured.html" style="width: WIDTHpx; height: 2000px; border: 0"></iframe>
<script>addEventListener("load", () => { document.body.dataset.measured = frames[0].document.body.dataset.measured; });
</script>"""
"""A window of Chromium is never narrower than 500 pixels; a frame is."""


def open_page(page: Path, *options: str, fragment: str = "") -> str:
    """What Chromium writes while it shows a page, from its `fragment` on: nothing on its console."""
    assert CHROMIUM is not None, "CI has to install chromium: apt-get install -y --no-install-recommends chromium"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    command += ["--enable-logging=stderr", "--v=0", f"--user-data-dir={page.parent / 'profile'}", *options]
    done = subprocess.run([*command, page.as_uri() + fragment], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


@cache
def measured(page: Path, script: str, width: int, *options: str) -> dict[str, Any]:
    """What a script at the end of the page leaves as JSON in `document.body.dataset.measured`, in a window of this
    width, by the time that all is loaded."""
    page.with_name("measured.html").write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.replace("WIDTH", str(width)))
    shown = open_page(frame, "--dump-dom", "--allow-file-access-from-files", *options)
    found = re.search(r'<body data-measured="([^"]*)"', shown)
    assert found, shown
    measures: dict[str, Any] = json.loads(unescape(found[1]))
    return measures
