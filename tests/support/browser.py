"""A real browser for tests, if one is installed."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SWITCHES = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1000,800")
PATIENCE_S = 20


class Page:
    """A page of a browser; elements are given by CSS selectors."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        """Open a page with empty session storage and logs."""
        self.driver.get(url)
        self.run("sessionStorage.clear()")
        self.console_messages(), self.requested_urls()
        self.driver.get(url)

    def run(self, script: str, *values: Any) -> Any:
        """Run a script and return its result."""
        return self.driver.execute_script(script, *values)

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def click(self, selector: str) -> None:
        self.driver.find_element("css selector", selector).click()

    def type(self, selector: str, *keys: str) -> None:
        self.driver.find_element("css selector", selector).send_keys(*keys)

    def set(self, selector: str, value: str) -> None:
        """Replace the value of an input."""
        self.driver.find_element("css selector", selector).clear()
        self.type(selector, value)

    def text(self, selector: str) -> str:
        return str(self.driver.find_element("css selector", selector).text)

    def wait(self, is_so: Callable[[], Any]) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, PATIENCE_S, 0.02).until(lambda driver: is_so())

    def wait_for(self, selector: str) -> None:
        self.wait(lambda: self.all(selector))

    def console_messages(self) -> list[str]:
        """Return the console messages since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requested_urls(self) -> list[str]:
        """Return the addresses that the page has requested since the last call."""
        entries = [json.loads(entry["message"]) for entry in self.driver.get_log("performance")]
        sent = [each["message"] for each in entries]
        return [
            each["params"]["request"]["url"]
            for each in sent
            if each["method"] == "Network.requestWillBeSent"
        ]

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


@contextmanager
def browser() -> Iterator[Page]:
    """Yield a page; skip the test without Chromium, its driver or selenium."""
    webdriver = pytest.importorskip("selenium.webdriver")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for switch in SWITCHES:
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.chrome.service.Service(driver)
    opened = webdriver.Chrome(options=options, service=service)
    try:
        yield Page(opened)
    finally:
        opened.quit()
