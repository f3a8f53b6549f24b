"""Fine-tunes a run on another dataset: `python examples/finetune.py runs/shop datasets/market runs/market`."""

import sys
from functools import partial

import seqrec_jax as sr

pretrained, dataset, run_dir, epochs = [*sys.argv[1:], 20][:4]
corpus = sr.Corpus(dataset)
model = sr.load(pretrained)
changes = {"item_encoder": "text_and_id", "id_dropout": 0.5, "transitions": True}
train = sr.TrainConfig(
    loss=sr.full_softmax, schedule=sr.warmup_cosine, optimizer=sr.adamw, learning_rate=2e-3, train_batch_size=3200
)
config = sr.FinetuneConfig(train=train, method=partial(sr.full, epochs=int(epochs)), changes=changes)
tuned, results = sr.finetune(model, corpus, config, run_dir=run_dir)
before, after = results["zero_shot"]["test"], results["test"]
print(f"test NDCG@10: {before['ndcg_at_10']:.4f} before, {after['ndcg_at_10']:.4f} after")
print(tuned.index(corpus.data).recommend(histories=[[corpus.data.items_table["item_id"][1].as_py()]], k=5))
