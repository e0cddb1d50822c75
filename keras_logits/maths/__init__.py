"""Pure mathematics: `keras.ops` in, `keras.ops` out; no state and no Keras class."""
