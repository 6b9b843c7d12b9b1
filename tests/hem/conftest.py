"""Helpers of these tests are imported by their bare name; `hem` is the package under test."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
