"""Train a re-ranker on a folder and measure it:  python examples/train.py photos/ --backbone mamba --out runs/own

The folder has one sub-folder for each class. Half of the classes trains; the other half is searched.
"""

import argparse

import locore

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("photos", help="a folder or zip with one sub-folder a class")
parser.add_argument("--backbone", default="mamba", help="a registered sequence encoder (default: mamba)")
parser.add_argument("--out", default="runs/own", help="folder of the weights; a stopped training goes on from here")
parser.add_argument("--steps", type=int, default=320)
parser.add_argument("--candidates", type=int, default=24, help="K, re-ranked of each query")
options = parser.parse_args()

benchmark = locore.benchmarks.create("folder", path=options.photos)
extractor = locore.Extractor(image_size=224, pooling="gem", local_stage=3)
training = locore.Training(
    steps=options.steps,
    batch_size=8,
    learning_rate=2e-3,
    warmup_steps=min(50, options.steps // 2),
    validate_every=max(options.steps // 2, 1),
)
model = locore.train_reranker(
    options.backbone, benchmark.train, extractor, options.out, candidates=options.candidates, training=training
)

# Compare with the search before you use the model: it does not help on every kind of image.
measured = locore.evaluate(model, benchmark, extractor, options.candidates)["all"]
for row in ("global", "reranked", "oracle"):
    print(f"{row:10}", {name: round(value, 1) for name, value in measured[row].items()})
print("re-ranked less global, 95 % intervals:", measured["difference"]["reranked"])
