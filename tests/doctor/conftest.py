"""What stands beside transformers is skipped where it is not installed."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("transformers") else ["test_hf_*.py"]
