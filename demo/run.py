"""The package's main job on real data: train, compare with Keras, save, load.

    python demo/run.py

Digits (one class among ten) and Yeast (14 labels at once), each trained with Keras'
flag right and wrong, and with this package in a graph and eagerly; and a language model
of the King James text, with a fused and with a plain loss. Writes the tables, the
learning curves and the trained models into demo-output/. Exit status 0 if our curves
are those of Keras with the right flag, the models load again, and the fused loss has
the plain one's curve in less memory.
"""

import os
import sys
from pathlib import Path

from quiet import quiet_stderr

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

with quiet_stderr():
    import tensorflow as tf  # noqa: F401

import checks
import language
import picture
import table
import tasks
from training import GRAPH, WAYS, WRONG, Trained, train

OUTPUT = Path(__file__).parents[1] / "demo-output"

NOTES = """\
wrong flag    a Dense head without activation, and the loss left at from_logits=False
final loss    mean training loss of the last epoch, as fit reports it
accuracy      on held-out rows; yeast: over all labels, yes above logit 0 (p = 0.5)
ours - tf.nn  largest difference of this package's loss from that of tf.nn, both on
              the logits of that row's model, over its held-out labels
from Keras    largest relative difference of the loss curve from the first row's
seconds       of fit, compilation included"""

AS_TOLD = """\
as told       {:.4f} accuracy of the wrong flag on yeast, if its outputs are read as
              the probabilities that the loss took them for: yes above 0.5"""


def main() -> int:
    OUTPUT.mkdir(exist_ok=True)
    results = [[train(task, way) for way in WAYS] for task in every_task()]
    show([trained for of_task in results for trained in of_task])
    made: list[checks.Check] = []
    for of_task in results:
        made += checks.same_curves(of_task)
        made.append(saved_and_loaded(of_task))
    print()
    made += language.trained_and_checked(OUTPUT)
    print()
    for check in made:
        print("ok    " if check.held else "FAILED", check.claim)
    print(
        f"\nWritten to {OUTPUT}: {', '.join(sorted(p.name for p in OUTPUT.iterdir()))}"
    )
    return 0 if all(check.held for check in made) else 1


def every_task() -> list[tasks.Task]:
    return [tasks.digits(), tasks.yeast()]


def show(results: list[Trained]) -> None:
    rows = table.rows(results)
    table.write_csv(rows, OUTPUT / "results.csv")
    picture.draw(results, OUTPUT / "learning-curves.png")
    print(f"\n{table.as_text(rows)}\n\n{NOTES}")
    (wrong,) = (r for r in results if r.way is WRONG and r.task.kind is tasks.SIGMOID)
    as_told = wrong.task.accuracy(wrong.logits(), threshold=0.5)
    print(AS_TOLD.format(as_told))


def saved_and_loaded(results: list[Trained]) -> checks.Check:
    (trained,) = (result for result in results if result.way is GRAPH)
    path = OUTPUT / f"{trained.task.name}.keras"
    trained.model.save(path)
    return checks.loads_back(trained, path)


if __name__ == "__main__":
    sys.exit(main())
