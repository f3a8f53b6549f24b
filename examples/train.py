"""Trains on a dataset, evaluates, recommends: `python examples/train.py datasets/shop runs/shop`."""

import sys
from functools import partial

import seqrec_jax as sr

dataset, run_dir, epochs = [*sys.argv[1:], 20][:3]
data = sr.open_dataset(dataset)
corpus = sr.Corpus([data], split=sr.leave_one_out)
model = sr.Recommender.create(corpus, sr.Architecture(hidden_size=64, hidden_dropout=0.2), seed=1)
settings = {"train_batch_size": 1600, "learning_rate": 2e-3, "optimizer": partial(sr.adamw, b2=0.98)}
config = sr.TrainConfig(epochs=int(epochs), eval_every=2, loss=sr.full_softmax, **settings)
model = sr.fit(model, corpus, config, run_dir=run_dir).model  # the best on validation; later: sr.load(run_dir)
report = sr.evaluate(model, corpus)
print(f"test NDCG@10 {report.test['ndcg_at_10']:.4f}, popularity {report.baselines['popularity']['ndcg_at_10']:.4f}")
index = model.index(data)
users, items = data.interactions_table["user_id"][:2].to_pylist(), data.items_table["item_id"][1:3].to_pylist()
print(index.recommend(users=users, k=5))
print(index.similar(items, k=5))
