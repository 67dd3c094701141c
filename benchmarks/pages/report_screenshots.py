"""Take pictures of a report page in headless Chromium: wide and narrow, light and dark.

    python benchmarks/pages/report_screenshots.py results/miniature/report.html pictures/

Needs chromium and chromedriver on the path, and selenium (`pip install -e '.[dev]'`). A page that logs an error, or
that is wider than the screen, is told and ends the script with status 1.
"""

from __future__ import annotations

import base64
import shutil
import sys
import tempfile
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

# name, width, height, colour scheme, the part of the page that is shown
SHOTS = (
    ("wide", 1400, 1000, "light", "top"),
    ("wide-dark", 1400, 1000, "dark", "attention-of-teacher-and-student"),
    ("narrow", 390, 844, "light", "attention-of-teacher-and-student"),
    ("narrow-dark", 390, 844, "dark", "top"),
    ("errors", 1150, 860, "light", "errors"),  # docs/img/errors.png: a report of `evaluate --output`
)
ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic",
)  # fmt: skip


def start(profile: Path) -> webdriver.Chrome:
    """Return a browser with a profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def main() -> int:
    """Take the pictures and return how many of them show a fault."""
    if len(sys.argv) != 3 or not (shutil.which("chromium") and shutil.which("chromedriver")):
        print(__doc__, file=sys.stderr)
        return 2
    page, output = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    output.mkdir(parents=True, exist_ok=True)
    faults = 0
    with tempfile.TemporaryDirectory() as profile:
        browser = start(Path(profile))
        for name, width, height, scheme, part in SHOTS:
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            feature = {"name": "prefers-color-scheme", "value": scheme}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
            browser.get(page.as_uri())
            browser.execute_script(
                "document.getElementById(arguments[0])?.scrollIntoView({behavior: 'instant'})", part
            )
            time.sleep(0.5)  # what is drawn when it comes into view
            taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
            (output / f"page-{name}.png").write_bytes(base64.b64decode(taken["data"]))
            needed = browser.execute_script("return document.documentElement.scrollWidth")
            errors = browser.get_log("browser")
            faults += bool(errors) or needed > width
            print(f"{name}: {width} x {height}, content {needed} wide, {len(errors)} messages", *errors)
        browser.quit()
    return min(faults, 1)


if __name__ == "__main__":
    sys.exit(main())
