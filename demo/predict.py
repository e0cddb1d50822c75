"""Load a trained model in a process of its own, and predict with it.

    python demo/predict.py MODEL.keras GIVEN.npz GOT.npz

GIVEN holds features `x` and labels `y`; GOT will hold the logits and the loss.
"""

import sys

import numpy as np

import keras_logits  # noqa: F401  (tells Keras about the layer and the loss in the file)

if __name__ == "__main__":
    import keras

    model_path, given_path, got_path = sys.argv[1:]
    model = keras.models.load_model(model_path)
    with np.load(given_path) as given:
        x, y = given["x"], given["y"]
    logits = model.predict(x, verbose=0)
    np.savez(got_path, logits=logits, loss=model.evaluate(x, y, verbose=0))
