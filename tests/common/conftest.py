"""Makes the helper modules of this folder importable and the marks of transformers' tests known."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

MARKS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "torch_compile_test",
)


def pytest_configure(config):
    for name in MARKS:
        config.addinivalue_line("markers", f"{name}: set by transformers' own tests")
