"""A headless browser that looks at TensorBoard."""

import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from urllib.request import urlopen

from selenium import webdriver

# Most of TensorBoard lies in shadow trees and frames, which the page's own text leaves out.
_ALL_TEXT = """
function text(node) {
  if (node.nodeType === Node.TEXT_NODE) return node.textContent.trim() + "\\n";
  if (["STYLE", "SCRIPT"].includes(node.nodeName)) return "";
  let found = "";
  if (node.nodeName === "IFRAME" && node.contentDocument) found += text(node.contentDocument.body);
  if (node.shadowRoot) for (const child of node.shadowRoot.childNodes) found += text(child);
  for (const child of node.childNodes) found += text(child);
  return found;
}
return text(document.body);
"""


@contextmanager
def tensorboard(folder):
    """Serve a folder; gives the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", folder, "--port", str(port), "--host", "127.0.0.1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(lambda: _answers(address), 60, "TensorBoard")
        yield address
    finally:
        process.terminate()
        process.wait()


def _answers(address):
    try:
        with urlopen(address, timeout=5):
            return True
    except OSError:
        return False


def _wait(condition, seconds, what):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not come within {seconds} seconds"
        time.sleep(0.5)


class Browser:
    """Opens pages and reads all that stands on them."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, address):
        self.driver.get("about:blank")
        self.driver.get(address)

    def text(self):
        return self.driver.execute_script(_ALL_TEXT)

    def wait_for(self, *texts, seconds=60):
        """Wait until all of these stand on the page; gives its text."""
        _wait(lambda: all(text in self.text() for text in texts), seconds, f"{texts} in {self.driver.current_url}")
        return re.sub(r"\n\s*\n+", "\n", self.text())


@contextmanager
def browser():
    """Debian's Chromium without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for option in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "window-size=1600,1400"):
        options.add_argument(f"--{option}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
