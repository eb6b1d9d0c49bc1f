"`--table docs/works_with.md` writes the page from the run, if every row ran for every model and none failed."
from pathlib import Path

import pytest
from clients import MODELS, installed
from page import Row, page, rows

FOUND = pytest.StashKey[dict]()

def pytest_addoption(parser):
    parser.addoption("--table", type=Path, help="write what works with what into this file")

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    mark = item.get_closest_marker("client")
    if mark and report.when == "call" and not report.failed:
        column = next(name for name, make in MODELS.items() if make is item.callspec.params["make"])
        cells = item.config.stash.setdefault(FOUND, {}).setdefault(mark.args[0], (Row(*mark.args), {}))[1]
        cells[column] = f"no: {report.wasxfail}" if hasattr(report, "wasxfail") else "yes"
    return report

def pytest_sessionfinish(session, exitstatus):
    path = session.config.getoption("--table", None)
    if path is None or exitstatus: return
    import test_clients
    import test_light
    found = session.config.stash.get(FOUND, {})
    clients = [row.name for row in rows([test_light, test_clients])]
    lacks = [name for name in clients if name not in found or len(found[name][1]) < len(MODELS)]
    if not lacks: path.write_text(page(list(found.values()), installed))
    else:
        print(f"\n{path} is left as it was: not run for every model: {', '.join(lacks)}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
