"""Makes the pictures of the page and of --plot from the demo's data: `tox -e pictures`."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

from PIL import Image, PngImagePlugin

ROOT = Path(__file__).resolve().parents[1]
# A day with a gap.
PLOT = ["2024-05-28", "--plot"]
VIEW = "start=2024-05-28T00:00Z&end=2024-05-29T00:00Z"


def sources() -> str:
    """Return the digest of the files that decide how the pictures look; each picture holds it."""
    files = sorted([*(ROOT / "alvo/page").iterdir(), ROOT / "alvo/plot.py"])
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def main() -> None:
    """Fill an embedded Fonte and Alvo in a temporary folder, draw them, and delete them."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        environment = os.environ | {"FONTE_ALVO_HOME": home}

        def run(*command: str) -> None:
            subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=True)

        run("seed.py")
        run("etl.py", "2024-05-20", "2024-05-29", "--columns", "wind_speed", "power", "ambient_temperature")
        run("etl.py", *PLOT, str(ROOT / "docs/plot.png"))
        command = [sys.executable, "-m", "alvo", "--port", "0"]
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as served:
            try:
                photograph(served.stdout.readline().split()[1], ROOT / "docs/page.png")
            finally:
                served.send_signal(signal.SIGINT)
    for name in ("plot.png", "page.png"):
        finish(ROOT / "docs" / name)


def photograph(url: str, file: Path) -> None:
    """Let headless Chromium show a day of the page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.goto(f"{url}/#{VIEW}")
        page.get_by_text("(kW)").first.wait_for()
        page.wait_for_selector("main:not(.loading)")
        page.screenshot(path=file, full_page=True)
        browser.close()


def finish(file: Path) -> None:
    """Reduce a picture to 256 colours, and write into it what it was drawn from."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Sources", sources())
    Image.open(file).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, pnginfo=info, optimize=True)


if __name__ == "__main__":
    main()
