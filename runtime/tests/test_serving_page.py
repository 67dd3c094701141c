"""The page to try a model, in a real browser: entities where they are, no markup of a text, nothing from elsewhere."""

import shutil

import pytest
from test_serving_http import counted, folder, serving, tagged  # noqa: F401 - fixtures

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver on the PATH")
def test_a_text_is_shown_with_its_entities_and_classes(tagged, counted, tmp_path):  # noqa: F811
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--no-proxy-server",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with serving({"default": tagged, "count": counted}) as at:
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        try:
            browser.implicitly_wait(10)
            browser.get(f"http://127.0.0.1:{at.port}/docs")

            def one(selector):
                return browser.find_element("css selector", selector)

            one("details code")  # the API is described: the page is ready
            browser.execute_script("document.querySelector('#text').value = '🏙 the <b>city</b>'")
            one("#go").click()
            assert one("#answer mark").text.startswith("city")
            assert one("#answer").text.startswith("🏙 the <b>city") and one("#answer").text.endswith("</b>")
            assert at.models["default"].version in one("#facts").text
            one("#model option[value=count]").click()
            one("#go").click()
            assert "a 0.3" in one("#answer table").text
            assert browser.get_log("browser") == []
        finally:
            browser.quit()
