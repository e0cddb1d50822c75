"""What every test process needs before the first import of Keras."""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if os.environ["KERAS_BACKEND"] == "torch":
    import torch  # noqa: F401  (before TensorFlow, or the two crash in one process)
