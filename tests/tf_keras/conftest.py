"""These tests are of TensorFlow alone: tf-keras knows no other backend."""

import os

collect_ignore_glob = []
if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
    collect_ignore_glob = ["test_*.py"]
