#!/usr/bin/env python3
"""The page in Debian's Chromium without a screen: send, stream, stop, again, reload, an error shown. Exit 77, skipped, where there is no Chromium.
    page_test.py PROGRAM MODEL
"""
import shutil
import sys
import time

if not shutil.which("chromium") or not shutil.which("chromedriver"):
    print("skipped: chromium and chromium-driver are not installed")
    sys.exit(77)

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from server import Server

program, model = sys.argv[1:3]
server = Server(program, model, "--api-key", "secret", "-c", "2048")
options = webdriver.ChromeOptions()
options.binary_location = shutil.which("chromium")
for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=390,800"):
    options.add_argument(flag)
options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def wait_for(condition, what, seconds=20):
    for _ in range(int(seconds / 0.05)):
        try:
            if condition():
                return
        except StaleElementReferenceException:  # drawn anew in between
            pass
        time.sleep(0.05)
    raise AssertionError(f"waited in vain for {what}; turns: {[turn.text for turn in turns()]}")


def turns():
    return browser.find_elements(By.CSS_SELECTOR, ".turn")


def is_idle():
    return browser.find_element(By.ID, "send").is_displayed()


def say(text):
    browser.find_element(By.ID, "text").send_keys(text, Keys.ENTER)


def set_fields(**values):
    browser.find_element(By.ID, "settings").click()
    for name, value in values.items():
        field = browser.find_element(By.CSS_SELECTOR, f"#dialog [name='{name}']")
        field.clear()
        field.send_keys(value)
    browser.find_element(By.CSS_SELECTOR, "#dialog button").click()


try:
    browser.get(server.url + "/")
    wait_for(lambda: "API key" in browser.find_element(By.ID, "numbers").text, "the error that a missing key gives")
    set_fields(key="secret", max_tokens="40")
    wait_for(lambda: "2048 positions" in browser.find_element(By.ID, "model").text, "the model's name")

    say("def read_lines(path):")
    wait_for(lambda: len(turns()) == 2 and is_idle(), "an answer")
    first = turns()[1].find_element(By.CLASS_NAME, "tokens").text
    assert first and "tok/s" in turns()[1].text, turns()[1].text
    assert turns()[0].text.endswith("def read_lines(path):")

    browser.find_element(By.ID, "again").click()
    wait_for(lambda: len(turns()) == 2 and is_idle() and turns()[1].find_elements(By.CLASS_NAME, "tokens"), "the answer once more")
    assert turns()[1].find_element(By.CLASS_NAME, "tokens").text == first, "greedy answers are the same"

    set_fields(max_tokens="700")
    say("x")
    wait_for(lambda: len(turns()) == 4 and len(turns()[3].text) > 300, "a long answer")
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
    wait_for(is_idle, "the stopped answer")
    wait_for(lambda: b"llamacpp:requests_processing 0\n" in server.get("/metrics", {"x-api-key": "secret"})[1], "the server to stop too")

    browser.refresh()
    wait_for(lambda: len(turns()) == 4, "the chat after a reload")
    assert turns()[1].find_element(By.CLASS_NAME, "tokens").text == first

    set_fields(temperature="7000")
    say("y")
    wait_for(lambda: browser.find_elements(By.CLASS_NAME, "error"), "an error")
    assert "temperature" in browser.find_element(By.CLASS_NAME, "error").text

    width = browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert width == 0, f"{width} pixels too wide for a phone"
    wrong = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE" and "401" not in entry["message"] and "400" not in entry["message"]]
    assert not wrong, wrong
finally:
    browser.quit()
    server.stop()
print("passed")
