"""A real Chromium without a window."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common.exceptions import TimeoutException, WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

PATIENCE = 60
"""Seconds that something may take to be seen, on a machine that has other things to do."""


@contextmanager
def chromium(folder: Path) -> Generator[webdriver.Chrome]:
    """Skips where there is none."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("chromium is not installed (apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1500,1100",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={folder}",
    ):
        options.add_argument(flag)
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield chrome
    finally:
        chrome.quit()


def click(browser: webdriver.Chrome, xpath: str) -> None:
    """Click the first visible element, once it is there; the page may draw it anew meanwhile."""

    def clicked(driver: webdriver.Chrome) -> bool:
        seen = [each for each in driver.find_elements(By.XPATH, xpath) if each.is_displayed()]
        if seen:
            seen[0].click()
        return bool(seen)

    WebDriverWait(browser, PATIENCE, ignored_exceptions=[WebDriverException]).until(clicked, xpath)


def press(browser: webdriver.Chrome, xpath: str) -> None:
    """Press a button once, where nothing draws the page anew: what it does must not be done twice."""
    WebDriverWait(browser, PATIENCE).until(lambda driver: driver.find_elements(By.XPATH, xpath), xpath)[0].click()


def fill(browser: webdriver.Chrome, name: str, text: str) -> None:
    """Write into an input, once it is there."""
    WebDriverWait(browser, PATIENCE).until(lambda driver: driver.find_elements(By.NAME, name), name)[0].send_keys(text)


def wait_for_text(browser: webdriver.Chrome, text: str, *, seconds: float = PATIENCE) -> None:
    """Until a page that draws itself anew says so."""

    def said(driver: webdriver.Chrome) -> bool:
        return text in " ".join(driver.find_element(By.TAG_NAME, "body").text.split())

    try:
        WebDriverWait(browser, seconds, ignored_exceptions=[WebDriverException]).until(said)
    except TimeoutException:
        shown = browser.find_element(By.TAG_NAME, "body").text
        raise AssertionError(f"{text!r} is not on {browser.current_url}: {shown}") from None
