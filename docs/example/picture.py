"""tokens.png: a text of report.html, coloured by expert, as Chromium shows it (needs Playwright)."""

import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
TITLE = "Which expert took which token?"

with sync_playwright() as playwright:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 1000, "height": 900}, color_scheme="light")
    page.goto((HERE / "report.html").as_uri())
    page.select_option("#text-pick", index=8)
    page.select_option("#text-layer", index=3)
    page.wait_for_timeout(1000)
    page.locator(".token").nth(18).hover()
    card = page.locator(".card").filter(has=page.get_by_role("heading", name=TITLE)).last
    card.screenshot(path=HERE / "tokens.png")
    browser.close()
