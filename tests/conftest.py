"""How tests run: hypothesis draws the same cases every time, and what is listed below is marked slow.

`make test-fast` leaves out what is slow: compilers, whole runs, notebooks that draw or measure, and most of the long
tables of models and goldens, of which every n-th case stays. It runs on one thread, on which tiny models are faster.
The list cannot rot: an entry that matches no test is an error, and pytest shows the slowest of the tests that stay."""
from fnmatch import fnmatch

import pytest
import torch
from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

def _one_thread():
    """Models this small are done before a second thread has started; on a busy machine waiting for it takes ten times
    as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

one_thread = pytest.fixture(_one_thread, name="one_thread")
one_thread_throughout = pytest.fixture(_one_thread, name="one_thread_throughout", scope="module") # fixtures included

# Each n-th of the tests that match stays fast; 0: none does.
SLOW = {
    "test_claims.py::test_another_record*": 3,
    "test_claims.py::test_a_page_says*": 0,
    "test_claims.py::test_other_records_make*": 0,
    "test_compile.py::*": 0,
    "test_coverage.py::*": 0,
    "test_documented.py::test_make[[]make*": 0,
    "test_documented.py::test_papermill*": 0,
    "test_datasets.py::test_leaves_at_their_true_numbers*-soyg*": 0,
    "test_datasets.py::test_leaves_at_their_true_numbers*-soyageing?": 0,
    "test_export.py::*": 0,
    "test_figures.py::*": 0,
    "test_site.py::test_*the_site*": 0,
    "test_site.py::test_code_of_the_texts_runs*": 0,
    "test_wheel.py::*": 0,
    "test_notebooks.py::test_runs*": 0,
    "test_notebooks.py::test_library?lab/*": 0,
    "test_notebooks.py::test_library?*_exporting]": 0,
    "test_notebooks.py::test_library?*_model]": 0,
    "test_notebooks.py::test_library?*_properties]": 0,
    "test_notebooks.py::test_library?index]": 0,
    "test_notebooks.py::test_library?14_own_reducer]": 0,
    "test_notebooks.py::test_library?training/03_data]": 0,
    "test_notebooks.py::test_library?reducers/*": 3,
    "test_preparation.py::test_all_say_the_same*": 0,
    "test_folders.py::test_a_compiled_model_has_its_own_names": 0,
    "test_folders.py::test_a_full_disk*": 0,
    "test_folders.py::test_the_readme_is_whole_in_any_locale": 0,
    "test_folders.py::test_the_second_process_is_told": 0,
    "test_platforms.py::*": 0,
    "test_repository.py::test_types": 0,
    "test_sweep.py::test_failures_are_retried_and_reported": 0,
    "test_sweep.py::test_killed_and_started_again": 0,
    "test_sweep.py::test_rates_are_searched_first": 0,
    "test_sweep.py::test_reducer_from_elsewhere": 0,
    "test_slurm.py::*": 0,
    "test_training.py::test_killed_in_mid_epoch": 0,
    "test_training.py::test_two_processes*": 0,
    "test_flavours.py::*": 5,
    "test_adapters.py::*": 3,
    "test_data.py::test_same_in_every_process": 0,
    "test_datasets.py::*": 3,
    "test_protocols.py::*": 4,
    "test_timm.py::test_another_process*": 5,
    "test_timm.py::test_two_calls*": 6,
    "test_timm.py::test_without_classes*": 4,
    "test_model.py::*": 8,
    "test_parity.py::*": 16,
    "test_properties.py::*": 8,
    "test_open.py::test_papermill*": 0,
    "test_outsiders.py::*": 8,
    "interop/test_clients.py::*": 0,
    "interop/test_light.py::test_[df]*dp*": 0,
    "interop/test_light.py::test_onnxruntime*": 0,
    "interop/test_light.py::*": 6,
    "test_published_order.py::*": 8,
}

def matching(items: list, pattern: str) -> list:
    return [item for item in items if fnmatch(item.nodeid.rpartition("tests/")[2], pattern)]

def pytest_collection_modifyitems(config, items):
    idle = []
    for pattern, stay in SLOW.items():
        found = matching(items, pattern)
        if not found: idle.append(pattern)
        for i, item in enumerate(found):
            if not stay or i % stay: item.add_marker(pytest.mark.slow)
    everything = config.args == config.getini("testpaths") and not config.option.keyword
    if idle and everything: raise pytest.UsageError(f"tests/conftest.py lists {idle[0]}, and no test is called so")
