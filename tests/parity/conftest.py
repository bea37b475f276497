"""Option --parity_figures FILE: the differences from transformers by model_type."""

import datetime
import json
import pathlib


def pytest_addoption(parser):
    """Adds the option, which `docs/families.py` says how to use."""
    parser.addoption("--parity_figures", type=pathlib.Path, default=None)


def pytest_sessionfinish(session, exitstatus):
    """Writes the figures of families whose tests ran, beside those in the file."""
    # Unknown where the whole suite runs, of which this is no first folder.
    file = session.config.getoption("--parity_figures", default=None)
    # 2: interrupted; what was compared before counts.
    if file is None or exitstatus not in (0, 2):
        return
    from parity.models_of_transformers import DIFFERENCES

    known = json.loads(file.read_text()) if file.exists() else {}
    today = datetime.date.today().isoformat()
    for model_type, found in DIFFERENCES.items():
        known[model_type] = {"difference": float(f"{found:.1e}"), "date": today}
    file.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
