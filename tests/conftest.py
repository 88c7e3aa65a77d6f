"""What all tests share: caches of their own, and a rule that nothing is skipped unseen."""

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # several at once, so a core each, before anything imports torch
    os.environ.update(OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1")

EXPECTED_SKIPS = (
    "emoji.zip is not on this machine",
    "no CUDA device on this machine",
    "no Chromium on this machine",
)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Descriptors and renderings of the tests, made once a session and kept apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCORE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A skip whose reason is not expected fails: a missing file or package must not pass for a green suite."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if not any(expected in reason for expected in EXPECTED_SKIPS):
            report.outcome, report.longrepr = "failed", f"unexpected skip: {reason}"
