"""Re-rank what a vector database finds:  python examples/vector_database.py photos/ query.jpg

Uses Qdrant in memory (pip install qdrant-client); any database that returns the nearest vectors will do.
"""

import argparse
from pathlib import Path

from PIL import Image
from qdrant_client import QdrantClient, models

import locore

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("photos", type=Path, help="a folder, searched with its sub-folders")
parser.add_argument("query", type=Path)
parser.add_argument("--reranker", help="a name, or a run folder (default: synthetic)")
parser.add_argument("--limit", type=int, default=100, help="hits that are re-ranked")
options = parser.parse_args()

paths = sorted(path for path in options.photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
extractor = locore.Extractor(image_size=224, pooling="gem", local_stage=3)

# What a service does once: describe every photo and store its vector.
vectors = extractor.describe([Image.open(path).convert("RGB") for path in paths]).global_matrix
database = QdrantClient(":memory:")
size = models.VectorParams(size=vectors.shape[1], distance=models.Distance.COSINE)
database.create_collection("photos", vectors_config=size)
database.upsert("photos", [models.PointStruct(id=i, vector=v.tolist()) for i, v in enumerate(vectors)])

# What it does for each query: search, then re-rank.
query = extractor.describe([Image.open(options.query).convert("RGB")]).global_matrix[0]
points = database.query_points("photos", query=query.tolist(), limit=options.limit).points
found = [paths[point.id] for point in points]
for hit in locore.rerank(options.query, found, options.reranker):
    print(found[hit.index])
